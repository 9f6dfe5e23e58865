//! No messages are taken while a dependency that every job needs is unavailable, so that neither
//! deliveries nor attempts are used up.

use std::{error::Error, sync::Arc, time::Duration};

use safelight_blobs::Blobs;
use safelight_domain::{ErrorCode, Failure, JobKind};
use safelight_store::Schema;
use safelight_telemetry::DependencyHealth;
use tokio::time::timeout;

/// How long a dependency may take to show that it works.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// Time between two looks whether a store that cannot be written is reachable.
const RECHECK: Duration = Duration::from_secs(1);

const CONSEQUENCE: &str = "no jobs are taken until it works again";

/// The dependencies of every job.
pub(super) struct Breaker {
    database: Arc<dyn Schema>,
    blobs: Blobs,
    database_health: DependencyHealth,
    blobs_health: DependencyHealth,
}

impl Breaker {
    pub fn new(database: Arc<dyn Schema>, blobs: Blobs) -> Self {
        Self {
            database,
            blobs,
            database_health: DependencyHealth::with_consequence("reach the database", CONSEQUENCE),
            blobs_health: DependencyHealth::with_consequence("use the blob store", CONSEQUENCE),
        }
    }

    pub fn database_failed(&self, error: &(dyn Error + 'static)) {
        self.database_health.report(error);
    }

    /// Takes no more messages if a job failed for an outage, until it is over. If the store or the database can be
    /// used all the same, it failed for this job alone.
    pub async fn pause_in_outage(&self, failure: &Failure) {
        let (works, health) = match failure.code {
            ErrorCode::StoreUnavailable => (self.blobs_work().await, &self.blobs_health),
            ErrorCode::DatabaseUnavailable => (self.database_works().await, &self.database_health),
            _ => return,
        };
        if !works {
            health.report(failure);
        }
    }

    async fn database_works(&self) -> bool {
        matches!(timeout(PROBE_LIMIT, self.database.ping()).await, Ok(Ok(())))
    }

    async fn blobs_work(&self) -> bool {
        matches!(timeout(PROBE_LIMIT, self.blobs.check_writable()).await, Ok(Ok(())))
    }

    /// Waits until jobs of `kind` can be run. Deletions make room, so they also run while the blob store is full.
    pub async fn closed_for(&self, kind: JobKind) {
        self.database_health.available().await;
        tokio::select! {
            biased;
            () = self.blobs_health.available() => {}
            () = self.reachable(), if kind == JobKind::Delete => {}
        }
    }

    /// Waits until the blob store answers, whether something can be written or not.
    async fn reachable(&self) {
        while self.blobs.check().await.is_err() {
            tokio::time::sleep(RECHECK).await;
        }
    }

    /// Probes what is unavailable. Never returns.
    pub async fn probe(&self) {
        let database = self.database_health.probe(|| self.database_works());
        let blobs = self.blobs_health.probe(|| self.blobs_work());
        tokio::join!(database, blobs);
    }
}
