//! The database's clock, which decides all due times and leases: what happens when it is set back.

use std::time::Duration;

use async_trait::async_trait;

use crate::StoreError;

/// Watching the database's clock.
///
/// A time that was written before the clock was set back lies ahead of it by as much: a job would wait, a lease
/// would last, until the clock is there again. Such times are brought back: what was due is due, and what waits
/// (a retry, a lease, the removal of cached bytes) waits for no longer than its own delay from now on, and for no
/// less than it should.
///
/// A time is taken for such a one if its row was written at a time that is still to come, or if it lies further
/// ahead than any process writes it ([`LongestWaits`]). So times that were written before the clock went wrong, or
/// after it was set back, stay as they are, and bringing times back twice changes nothing.
///
/// Dates on which people agreed (the expiry of an API key) and records of what happened stay as they are.
#[async_trait]
pub trait DatabaseClock: Send + Sync + 'static {
    /// Compares the clock with the latest time that it has shown. If it was set back, brings times back and
    /// returns by how much.
    ///
    /// Steps of a second or less do not count, and those of a few seconds may go unnoticed: the latest time is
    /// recorded every few seconds only. Of what was written before a small step, nothing waits longer than the step.
    async fn observe_clock(&self, waits: &LongestWaits) -> Result<Option<Duration>, StoreError>;

    /// Brings back times that lie ahead of the clock, whether or not a step was observed: the clock may have been
    /// ahead for less than the time between two observations, or a transaction may have started before a step
    /// and ended after its observation. Writes nothing if there are none. Returns how many rows it changed.
    async fn bring_times_back(&self, waits: &LongestWaits) -> Result<u64, StoreError>;
}

/// How far ahead of the clock a process may write times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongestWaits {
    /// The longest lease on a job, lead of a backfill, or hold of the outbox.
    pub lease: Duration,
    /// The longest reservation of an idempotency key.
    pub key_hold: Duration,
    /// The longest delay of a job: before a retry, or until caches have forgotten a deleted image. No shorter than
    /// `lease`, because a deletion waits for leases.
    pub job_delay: Duration,
}
