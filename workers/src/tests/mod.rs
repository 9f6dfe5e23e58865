//! The parts together, on a real SQLite file, the in-process queue and a local directory.

mod backfill;
mod cancel;
mod delete;
mod flaky;
mod garbage;
mod housekeeping;
mod lanes;
mod registry;
mod simulation;
pub(crate) mod test_worker;
mod verify;
mod versions;
mod work;
