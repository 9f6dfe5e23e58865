//! Backups: copies of the database and of the blob store that belong together, made while the server runs, and the
//! way back. `docs/backup.md` describes them for users.
//!
//! ```text
//! backup.json                    the installation, written before anything else
//! backup.lock                    locked while a backup runs (directories only)
//! clock                          empty; its time is that of the place
//! database/<time>.sqlite         a copy of the database, or <time>.pgdump
//! database/<time>.contents       the bytes that its images need, ordered by hash
//! database/<time>.json           what the snapshot consists of; written last, a snapshot without it does not count
//! incoming/, blobs/, renditions/ as in the blob store, shared by all snapshots
//! ```
//!
//! The database is copied first, then the bytes. Bytes move in one direction only, from `incoming/` to `blobs/`, so
//! what a copy of the database knows is found in that order, unless its image was deleted meanwhile.

mod contents;
mod copying;
mod create;
mod database;
mod expected_hashes;
mod findings;
mod location;
mod merge;
mod postgres;
mod prune;
mod restore;
mod snapshots;
mod verify;

pub use create::{BackupOptions, BackupReport, create};
pub use location::Location;
pub use restore::{RestoreOptions, restore};
