//! The work behind the queue: the worker loop with its job handlers, imaging, and the three
//! housekeepers ([`relay`], [`rescuer`], [`janitor`]) that make lost messages, dead workers and
//! abandoned bytes harmless.
//!
//! Any number of each may run, in one process or in many; each returns once its `shutdown` token is
//! cancelled.

pub mod decoder;
mod handlers;
pub mod imaging;
pub mod janitor;
mod policy;
pub mod relay;
pub mod rescuer;
mod trouble;
pub mod worker;

#[cfg(test)]
mod tests;

pub use worker::WorkerOptions;
