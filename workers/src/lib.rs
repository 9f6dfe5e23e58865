//! The work behind the queue: the worker that runs jobs, and the background services that recover from dead
//! workers, lost messages and dead letters, and delete abandoned bytes.
//!
//! Any number of each may run, in one process or in many; each returns once its `shutdown` token is
//! cancelled.
//!
//! A module imports only from its own layer and the layers below it: `parts`, `removal`, `retry_policy` <
//! `jobs` < `maintenance`, `backfill` < `consumer` < `services`.

pub mod backfill;
pub mod consumer;
pub mod jobs;
pub mod maintenance;
mod parts;
mod removal;
mod retry_policy;
mod services;

#[cfg(test)]
mod tests;

pub use consumer::WorkerOptions;
pub use jobs::decoder_options;
pub use maintenance::{Service, ServiceStatuses, run_service};
pub use parts::WorkerParts;
pub use services::{outbox_relay, services};
