//! No messages are taken while a dependency that every job needs is unavailable, so that neither
//! deliveries nor attempts are used up.

use std::{error::Error, sync::Arc};

use safelight_blobs::Blobs;
use safelight_store::Schema;
use safelight_telemetry::DependencyHealth;

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

    pub fn blobs_failed(&self, error: &(dyn Error + 'static)) {
        self.blobs_health.report(error);
    }

    /// Waits until jobs can be run.
    pub async fn closed(&self) {
        self.database_health.available().await;
        self.blobs_health.available().await;
    }

    /// Probes what is unavailable. Never returns.
    pub async fn probe(&self) {
        let database = self.database_health.probe(|| {
            let database = self.database.clone();
            async move { database.ping().await.is_ok() }
        });
        let blobs = self.blobs_health.probe(|| {
            let blobs = self.blobs.clone();
            async move { blobs.check_writable().await.is_ok() }
        });
        tokio::join!(database, blobs);
    }
}
