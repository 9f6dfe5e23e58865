//! Gauges that are read from the store.

use std::time::Duration;

use safelight_domain::{JobKind, Lane, Status};
use safelight_store::{DynStore, StoreError, WorkerStatus};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::workers::list_workers;

/// How long the store may take.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// How long gauges are good.
const MAX_AGE: Duration = Duration::from_secs(1);

/// Gauges whose values come from the store, read once a second at most.
pub struct Gauges {
    store: DynStore,
    read_at: Mutex<Option<Instant>>,
}

impl Gauges {
    /// The gauges of `store`, not read yet.
    pub fn new(store: DynStore) -> Self {
        Self { store, read_at: Mutex::default() }
    }

    /// Reads them if they are old. While the store is unavailable they stay as they are.
    pub async fn refresh(&self) {
        let mut read_at = self.read_at.lock().await;
        if read_at.is_some_and(|at| at.elapsed() < MAX_AGE) {
            return;
        }
        match timeout(READ_TIMEOUT, set_gauges(&self.store)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot read gauges"),
            Err(_) => tracing::warn!("the database does not answer for gauges"),
        }
        *read_at = Some(Instant::now());
    }
}

async fn set_gauges(store: &DynStore) -> Result<(), StoreError> {
    let counts = store.job_counts().await?;
    let unpublished = store.count_unpublished().await?;
    let workers = list_workers(&**store).await?;
    for status in WorkerStatus::ALL {
        let count = workers.iter().filter(|worker| worker.status() == status).count();
        metrics::gauge!("safelight_workers", "status" => status.as_str())
            .set(u32::try_from(count).unwrap_or(u32::MAX));
    }
    // States without jobs are not in the result, and must become zero.
    for (kind, lane) in
        JobKind::ALL.iter().flat_map(|&kind| Lane::ALL.iter().map(move |&lane| (kind, lane)))
    {
        let mut oldest_due = 0.0_f64;
        for status in [Status::Queued, Status::Running, Status::Failed] {
            let found =
                counts.iter().find(|c| c.kind == kind && c.lane == lane && c.status == status);
            #[allow(clippy::cast_precision_loss)] // exact up to 2^53 jobs
            let count = found.map_or(0.0, |found| found.count as f64);
            metrics::gauge!("safelight_jobs", "kind" => kind.as_str(), "lane" => lane.as_str(), "status" => status.as_str())
                .set(count);
            if status == Status::Queued {
                oldest_due = found.map_or(0.0, |found| found.oldest_due_seconds);
            }
        }
        metrics::gauge!("safelight_oldest_due_seconds", "kind" => kind.as_str(), "lane" => lane.as_str())
            .set(oldest_due);
    }
    #[allow(clippy::cast_precision_loss)] // exact up to 2^53 jobs
    metrics::gauge!("safelight_unpublished_jobs").set(unpublished as f64);
    let held_back = store.installation().await?.keeps_unknown;
    metrics::gauge!("safelight_removals_held_back").set(u32::from(held_back));
    Ok(())
}
