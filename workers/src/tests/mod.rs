//! The parts together, on a real SQLite file, the in-process queue and a local directory.

mod backfill;
mod cancel;
mod delete;
mod flaky;
mod garbage;
mod housekeeping;
pub(crate) mod lab;
mod lanes;
mod registry;
mod simulation;
mod verify;
mod versions;
mod work;
