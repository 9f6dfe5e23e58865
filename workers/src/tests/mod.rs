//! Tests of the whole worker on a real SQLite file, the in-process queue and a local directory.

mod backfill;
mod cancel;
mod damage;
mod database_faults;
mod delete;
mod garbage;
mod installation;
mod lanes;
mod maintenance;
mod registry;
mod simulation;
pub(crate) mod test_worker;
mod verify;
mod versions;
mod work;
