//! The store ([`safelight_store::Store`]) on PostgreSQL and on SQLite, each with its SQL written out. One
//! contract suite runs on both (`tests/contract/store.rs`).

mod convert;
pub mod fs_permissions;
pub mod postgres;
mod schema;
pub mod sqlite;

pub use postgres::PostgresStore;
pub use sqlite::SqliteStore;
