//! The store ([`safelight_store::Store`]) on PostgreSQL and on SQLite. One contract suite runs on both
//! (`tests/contract/store.rs`).
//!
//! What is the same for both is in `shared/`: these modules are compiled twice, as modules of `postgres` and
//! of `sqlite`, each with the `dialect` of its folder.

#![allow(clippy::duplicate_mod)] // shared/ is compiled once per dialect

mod calls;
mod convert;
mod locks;
mod new_task;
pub mod postgres;
mod schema;
mod snapshot;
pub mod sqlite;

pub use postgres::PostgresStore;
pub use snapshot::{BytesState, NeededBytes, SnapshotFacts};
pub use sqlite::SqliteStore;
