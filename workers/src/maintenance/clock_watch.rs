//! Watches the database's clock, by which jobs and leases are due: if it was ahead and is set back, what was written
//! meanwhile must not wait until the clock is there again.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use metrics::counter;
use safelight_config::Config;
use safelight_queue::OutboxSignal;
use safelight_store::{DatabaseClock, LongestWaits, StoreError};
use tokio::time::Instant;

use super::service::{Service, ServiceError};

/// One row is read; every few seconds one is written.
const PERIOD: Duration = Duration::from_secs(2);

/// After a step, transactions that started before it may still commit times from before: for longer than the
/// longest call of the database takes.
const STRAGGLERS: Duration = Duration::from_secs(30);

/// How often it looks for times that lie ahead although no step was seen: the clock may have been ahead between two
/// observations, or while no process ran.
const SEARCH_PERIOD: Duration = Duration::from_mins(1);

/// What any configuration allows (see `lease_ms`, `idempotency_hold_ms` and `backoff_cap_ms`). Where no step was
/// seen, only what is longer is surely wrong: other nodes may have another configuration.
const LONGEST_CONFIGURABLE: LongestWaits = LongestWaits {
    lease: Duration::from_mins(20),
    key_hold: Duration::from_hours(1),
    job_delay: Duration::from_hours(24),
};

/// The outbox relay and the backfill coordinator hold rows for this long.
const HOLD: Duration = Duration::from_secs(10);

/// Notices that the database's clock was set back, and has times brought back.
pub(crate) struct ClockWatch {
    clock: Arc<dyn DatabaseClock>,
    outbox_signal: OutboxSignal,
    waits: LongestWaits,
    last_step: Option<Instant>,
    last_search: Option<Instant>,
}

impl ClockWatch {
    pub fn new(
        clock: Arc<dyn DatabaseClock>,
        outbox_signal: OutboxSignal,
        config: &Config,
    ) -> Self {
        // An alert needs the first step of a counter.
        counter!("safelight_clock_steps_total").increment(0);
        let waits = longest_waits(config);
        Self { clock, outbox_signal, waits, last_step: None, last_search: None }
    }

    pub async fn observe(&mut self) -> Result<(), StoreError> {
        if let Some(step) = self.clock.observe_clock(&self.waits).await? {
            tracing::warn!(
                ?step,
                "the database's clock was set back; what is due does not wait for it"
            );
            counter!("safelight_clock_steps_total").increment(1);
            self.last_step = Some(Instant::now());
            self.outbox_signal.notify();
        } else if self.last_step.is_some_and(|step| step.elapsed() < STRAGGLERS) {
            self.bring_back(&self.waits).await?;
        } else if self.last_search.is_none_or(|search| search.elapsed() >= SEARCH_PERIOD) {
            let rows = self.bring_back(&LONGEST_CONFIGURABLE).await?;
            self.last_search = Some(Instant::now());
            if rows > 0 {
                tracing::warn!(
                    rows,
                    "the database's clock was ahead for a while; what is due does not wait for it"
                );
                counter!("safelight_clock_steps_total").increment(1);
            }
        }
        Ok(())
    }

    async fn bring_back(&self, waits: &LongestWaits) -> Result<u64, StoreError> {
        let rows = self.clock.bring_times_back(waits).await?;
        if rows > 0 {
            self.outbox_signal.notify();
        }
        Ok(rows)
    }
}

/// How far ahead of the clock processes with this configuration write times.
fn longest_waits(config: &Config) -> LongestWaits {
    let lease = Duration::from_millis(config.lease_ms).max(HOLD);
    let retry = Duration::from_millis(config.backoff_cap_ms);
    LongestWaits {
        lease,
        key_hold: Duration::from_millis(config.idempotency_hold_ms),
        job_delay: lease.max(retry).max(config.unknown_after()),
    }
}

#[async_trait]
impl Service for ClockWatch {
    fn name(&self) -> &'static str {
        "clock_watch"
    }

    fn action(&self) -> &'static str {
        "watch the database's clock"
    }

    fn period(&self) -> Option<Duration> {
        Some(PERIOD)
    }

    async fn run(&mut self) -> Result<(), ServiceError> {
        Ok(self.observe().await?)
    }
}
