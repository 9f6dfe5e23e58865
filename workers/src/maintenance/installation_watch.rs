//! Notices early that the database is an older copy of itself, and keeps its generation beside the bytes.

use std::time::Duration;

use async_trait::async_trait;
use safelight_removal::{InstallationGuard, RemovalError};

use super::service::{Service, ServiceError};

/// A copy of the database that is older than this is noticed.
const PERIOD: Duration = Duration::from_secs(30);

/// Watches over the installation's generation.
pub(crate) struct InstallationWatch {
    guard: InstallationGuard,
}

impl InstallationWatch {
    pub fn new(guard: InstallationGuard) -> Self {
        Self { guard }
    }

    async fn look(&self) -> Result<(), RemovalError> {
        self.guard.may_remove_unknown().await?;
        self.guard.advance().await
    }
}

#[async_trait]
impl Service for InstallationWatch {
    fn name(&self) -> &'static str {
        "installation_watch"
    }

    fn action(&self) -> &'static str {
        "compare the database with the blob store"
    }

    fn period(&self) -> Option<Duration> {
        Some(PERIOD)
    }

    async fn run(&mut self) -> Result<(), ServiceError> {
        Ok(self.look().await?)
    }
}
