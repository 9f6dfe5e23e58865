//! Removes rows that are no longer needed: old idempotency keys, old tasks, and workers without heartbeats.

use std::time::Duration;

use async_trait::async_trait;
use safelight_config::Config;
use safelight_store::{DynStore, StoreError};

use super::service::{Service, ServiceError};

/// Rows in one statement.
const BATCH: u32 = 256;

const KEYS_PERIOD: Duration = Duration::from_hours(1);
const TASKS_PERIOD: Duration = Duration::from_mins(10);
const WORKERS_PERIOD: Duration = Duration::from_mins(1);

/// Pause between two batches of old tasks, so that other transactions can write.
const TASKS_PAUSE: Duration = Duration::from_millis(100);

/// A worker is removed after this time without a heartbeat: it was killed, or its machine is gone.
const FORGET_WORKERS_AFTER: Duration = Duration::from_mins(10);

/// Forgets idempotency keys older than `idempotency_keep_hours`.
pub(crate) struct ExpiredKeys {
    store: DynStore,
    max_age: Duration,
}

impl ExpiredKeys {
    pub fn new(store: DynStore, config: &Config) -> Self {
        let max_age = Duration::from_secs(config.idempotency_keep_hours.saturating_mul(3600));
        Self { store, max_age }
    }

    pub async fn prune(&self) -> Result<(), StoreError> {
        while self.store.expire_keys(self.max_age, BATCH).await? > 0 {}
        Ok(())
    }
}

#[async_trait]
impl Service for ExpiredKeys {
    fn name(&self) -> &'static str {
        "expired_keys"
    }

    fn action(&self) -> &'static str {
        "forget old idempotency keys"
    }

    fn period(&self) -> Option<Duration> {
        Some(KEYS_PERIOD)
    }

    async fn run(&mut self) -> Result<(), ServiceError> {
        Ok(self.prune().await?)
    }
}

/// Forgets tasks that ended more than `task_keep_days` ago.
pub(crate) struct OldTasks {
    store: DynStore,
    max_age: Duration,
}

impl OldTasks {
    pub fn new(store: DynStore, config: &Config) -> Self {
        let max_age = Duration::from_hours(config.task_keep_days.saturating_mul(24));
        Self { store, max_age }
    }
}

#[async_trait]
impl Service for OldTasks {
    fn name(&self) -> &'static str {
        "old_tasks"
    }

    fn action(&self) -> &'static str {
        "forget old tasks"
    }

    fn period(&self) -> Option<Duration> {
        Some(TASKS_PERIOD)
    }

    async fn run(&mut self) -> Result<(), ServiceError> {
        while self.store.prune_tasks(self.max_age, BATCH).await? > 0 {
            tokio::time::sleep(TASKS_PAUSE).await;
        }
        Ok(())
    }
}

/// Removes workers from the registry that have sent no heartbeat for [`FORGET_WORKERS_AFTER`].
pub(crate) struct SilentWorkers {
    store: DynStore,
}

impl SilentWorkers {
    pub fn new(store: DynStore) -> Self {
        Self { store }
    }
}

#[async_trait]
impl Service for SilentWorkers {
    fn name(&self) -> &'static str {
        "silent_workers"
    }

    fn action(&self) -> &'static str {
        "forget silent workers"
    }

    fn period(&self) -> Option<Duration> {
        Some(WORKERS_PERIOD)
    }

    async fn run(&mut self) -> Result<(), ServiceError> {
        let forgotten = self.store.forget_workers(FORGET_WORKERS_AFTER).await?;
        if forgotten > 0 {
            tracing::info!(workers = forgotten, "forgot workers that have been silent for long");
        }
        Ok(())
    }
}
