//! The store in one SQLite file, for one process: one writer with group commit, and readers beside it (WAL).
//!
//! The modules of `shared/` are compiled with this folder's `dialect`, `store`, `create`, `cancel`, `requeue` and
//! `lead`.

mod cancel;
mod checkpoint;
mod claim;
mod clock;
mod create;
mod database_files;
mod dialect;
mod disk_space;
mod effects;
mod finish;
mod fs_permissions;
mod gather;
mod jobs;
mod lead;
mod outbox;
mod patience;
mod requeue;
mod schema;
mod settle;
mod snapshot;
mod store;
mod writer;

#[path = "../shared/access.rs"]
mod access;
#[path = "../shared/backfill_rows.rs"]
mod backfill_rows;
#[path = "../shared/backfill_state.rs"]
mod backfill_state;
#[path = "../shared/backfill_step.rs"]
mod backfill_step;
#[path = "../shared/backfills.rs"]
mod backfills;
#[path = "../shared/clock_steps.rs"]
mod clock_steps;
#[path = "../shared/control.rs"]
mod control;
#[path = "../shared/counts.rs"]
mod counts;
#[path = "../shared/deletions.rs"]
mod deletions;
#[path = "../shared/installation.rs"]
mod installation;
#[path = "../shared/lost_leases.rs"]
mod lost_leases;
#[path = "../shared/notices.rs"]
mod notices;
#[path = "../shared/prune.rs"]
mod prune;
#[path = "../shared/reads.rs"]
mod reads;
#[path = "../shared/results.rs"]
mod results;
#[path = "../shared/rows.rs"]
mod rows;
#[path = "../shared/snapshot_rows.rs"]
mod snapshot_rows;
#[path = "../shared/task_filter.rs"]
mod task_filter;
#[path = "../shared/uploads.rs"]
mod uploads;
#[path = "../shared/walk.rs"]
mod walk;
#[path = "../shared/workers.rs"]
mod workers;

#[cfg(feature = "testing")]
pub use clock::Clock;
#[cfg(feature = "testing")]
pub use clock_steps::{BROUGHT_BACK, STAYS};
pub use snapshot::{complete, has_images, lock, snapshot};
pub use store::SqliteStore;
