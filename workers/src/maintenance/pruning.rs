//! Removes rows that are no longer needed: old idempotency keys, old tasks, and workers without heartbeats.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use safelight_store::{Control, StoreError, Uploads, Workers};

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
    uploads: Arc<dyn Uploads>,
    max_age: Duration,
}

impl ExpiredKeys {
    pub fn new(uploads: Arc<dyn Uploads>, max_age: Duration) -> Self {
        Self { uploads, max_age }
    }

    pub async fn prune(&self) -> Result<(), StoreError> {
        while self.uploads.expire_keys(self.max_age, BATCH).await? > 0 {}
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
    control: Arc<dyn Control>,
    max_age: Duration,
}

impl OldTasks {
    pub fn new(control: Arc<dyn Control>, max_age: Duration) -> Self {
        Self { control, max_age }
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
        while self.control.prune_tasks(self.max_age, BATCH).await? > 0 {
            tokio::time::sleep(TASKS_PAUSE).await;
        }
        Ok(())
    }
}

/// Removes workers from the registry that have sent no heartbeat for [`FORGET_WORKERS_AFTER`].
pub(crate) struct SilentWorkers {
    workers: Arc<dyn Workers>,
}

impl SilentWorkers {
    pub fn new(workers: Arc<dyn Workers>) -> Self {
        Self { workers }
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
        let forgotten = self.workers.forget_workers(FORGET_WORKERS_AFTER).await?;
        if forgotten > 0 {
            tracing::info!(workers = forgotten, "forgot workers that have been silent for long");
        }
        Ok(())
    }
}
