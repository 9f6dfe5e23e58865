//! The backfill coordinator: decides which backfills this process leads, and runs them.

use std::{collections::HashMap, error::Error, sync::Arc, time::Duration};

use async_trait::async_trait;
use safelight_blobs::Blobs;
use safelight_config::Config;
use safelight_domain::{Backfill, TaskId, WorkerId};
use safelight_queue::OutboxSignal;
use safelight_removal::InstallationGuard;
use safelight_store::{Backfills, DynStore, StoreError};
use safelight_telemetry::DependencyHealth;
use tokio::task::{AbortHandle, JoinSet};

use super::{feeder::Feeder, import::StepState};
use crate::maintenance::service::{Service, ServiceError};

/// How long the lead of a coordinator lasts: after it died, no other one leads its backfills for this long.
const HOLD: Duration = Duration::from_secs(10);

/// Backfills that one coordinator leads. Paused ones are led after those that are not.
const BACKFILLS: u32 = 64;

/// How often it looks for backfills, and renews its lead of those that it has.
const PERIOD: Duration = Duration::from_millis(500);

/// Pauses between the steps of a backfill: if the last step made no progress, and if it did.
const IDLE_PAUSE: Duration = Duration::from_millis(100);
const PROGRESS_PAUSE: Duration = Duration::from_millis(20);

/// How long it may take at shutdown to release its lead.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// Ended tasks counted in one transaction.
const RESULTS: u32 = 500;

/// Leads backfills, each in a separate task. All tasks end with it.
pub(crate) struct BackfillCoordinator {
    backfills: Arc<dyn Backfills>,
    id: WorkerId,
    feeder: Arc<Feeder>,
    led: HashMap<TaskId, AbortHandle>,
    tasks: JoinSet<()>,
}

impl BackfillCoordinator {
    pub fn new(
        store: DynStore,
        blobs: Blobs,
        guard: InstallationGuard,
        outbox_signal: OutboxSignal,
        config: &Config,
    ) -> Self {
        Self {
            feeder: Arc::new(Feeder::new(store.clone(), blobs, guard, outbox_signal, config)),
            backfills: store,
            id: WorkerId::new(),
            led: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Renews the lead, starts new backfills, and stops those that ended or that another one leads.
    async fn update_lead(&mut self) -> Result<(), StoreError> {
        let found = self.backfills.lead_backfills(self.id, HOLD, BACKFILLS).await?;
        self.led.retain(|id, work| {
            let is_led = found.iter().any(|backfill| backfill.id == *id);
            if !is_led {
                work.abort();
            }
            is_led && !work.is_finished()
        });
        for Backfill { id, .. } in found {
            if !self.led.contains_key(&id) {
                let work = work_on(self.backfills.clone(), self.feeder.clone(), id);
                self.led.insert(id, self.tasks.spawn(work));
            }
        }
        while self.tasks.try_join_next().is_some() {}
        Ok(())
    }

    /// One step of every backfill that it leads, for tests that go step by step.
    #[cfg(test)]
    pub async fn step(&self) -> Result<(), super::error::BackfillError> {
        for Backfill { id, .. } in self.backfills.lead_backfills(self.id, HOLD, BACKFILLS).await? {
            self.backfills.collect_results(id, RESULTS).await?;
            self.feeder.feed(id, &mut StepState::default()).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Service for BackfillCoordinator {
    fn name(&self) -> &'static str {
        "backfill_coordinator"
    }

    fn action(&self) -> &'static str {
        "lead backfills"
    }

    fn period(&self) -> Option<Duration> {
        Some(PERIOD)
    }

    async fn run(&mut self) -> Result<(), ServiceError> {
        Ok(self.update_lead().await?)
    }

    fn grace(&self) -> Duration {
        RELEASE_TIMEOUT
    }

    /// Leaves its backfills to other coordinators immediately; otherwise they wait for the end of the hold.
    async fn stop(&mut self) -> Result<(), ServiceError> {
        self.tasks.shutdown().await;
        self.backfills.lead_backfills(self.id, Duration::ZERO, BACKFILLS).await?;
        Ok(())
    }
}

/// Collects the results of a backfill and feeds it, concurrently.
async fn work_on(backfills: Arc<dyn Backfills>, feeder: Arc<Feeder>, id: TaskId) {
    tokio::join!(keep_collecting(&*backfills, id), keep_feeding(&feeder, id));
}

async fn keep_collecting(backfills: &dyn Backfills, id: TaskId) {
    let health = DependencyHealth::new("collect the results of a backfill");
    loop {
        let collected = backfills.collect_results(id, RESULTS).await;
        tokio::time::sleep(pause(&health, collected.map(|count| count > 0))).await;
    }
}

async fn keep_feeding(feeder: &Feeder, id: TaskId) {
    let health = DependencyHealth::new("continue a backfill");
    let mut state = StepState::default();
    loop {
        let fed = feeder.feed(id, &mut state).await;
        tokio::time::sleep(pause(&health, fed)).await;
    }
}

/// How long to wait after a step that returned whether it made progress.
fn pause<E: Error + 'static>(health: &DependencyHealth, step: Result<bool, E>) -> Duration {
    match step {
        Ok(has_progress) => {
            health.recovered();
            if has_progress { PROGRESS_PAUSE } else { IDLE_PAUSE }
        }
        Err(error) => health.failed(&error),
    }
}
