//! The work behind the queue: the worker loop with its job handlers, imaging, and the four
//! housekeepers ([`relay`], [`rescuer`], [`dead_letters`], [`janitor`]) that make lost messages, dead
//! workers, worn-out messages and abandoned bytes harmless.
//!
//! Any number of each may run, in one process or in many; each returns once its `shutdown` token is
//! cancelled.

pub mod backfill;
pub mod dead_letters;
mod handlers;
pub mod janitor;
mod policy;
pub mod relay;
mod removal;
pub mod rescuer;
pub mod worker;

#[cfg(test)]
mod tests;

pub use worker::{WorkerOptions, decoder_options};
