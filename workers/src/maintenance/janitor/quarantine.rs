//! Objects that a collection of garbage moved to the quarantine.

use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use safelight_blobs::Blobs;

use super::period::sweep_period;
use crate::{
    maintenance::service::{Service, ServiceError},
    removal::Quarantine,
};
use safelight_removal::InstallationGuard;

/// Objects looked up in one statement.
const BATCH: usize = 500;

/// Returns what images need, and deletes the rest after its time.
pub(crate) struct QuarantinedObjects {
    quarantine: Quarantine,
    blobs: Blobs,
    guard: InstallationGuard,
    period: Duration,
}

impl QuarantinedObjects {
    /// `keep` is how long objects stay, `grace` that of staged bytes.
    pub fn new(
        quarantine: Quarantine,
        blobs: Blobs,
        guard: InstallationGuard,
        keep: Duration,
        grace: Duration,
    ) -> Self {
        // Without a quarantine there is only what interrupted collections have left.
        let wait = if keep.is_zero() { grace } else { keep.min(grace) };
        Self { quarantine, blobs, guard, period: sweep_period(wait) }
    }

    /// Looks at everything in the quarantine. An object that is needed, since its move was interrupted or since
    /// the database knows its image again, returns at once; the others are deleted after their time, unless the
    /// database may know less than it should.
    async fn sweep(&self) -> Result<(), ServiceError> {
        let mut batches = std::pin::pin!(self.blobs.quarantined().try_chunks(BATCH));
        let (mut returned, mut deleted) = (0, 0);
        while let Some(batch) = batches.try_next().await.map_err(|error| error.1)? {
            // For each batch, because a sweep may take long.
            self.blobs.confirm().await?;
            let may_delete = self.guard.may_remove_unknown().await?;
            let now = self.blobs.clock().await?;
            let sifted = self.quarantine.sift(&batch, now, may_delete).await?;
            returned += sifted.returned;
            deleted += sifted.deleted;
        }
        if returned + deleted > 0 {
            tracing::info!(returned, deleted, "looked through the quarantine");
        }
        Ok(())
    }
}

#[async_trait]
impl Service for QuarantinedObjects {
    fn name(&self) -> &'static str {
        "quarantine"
    }

    fn action(&self) -> &'static str {
        "look through the quarantine"
    }

    fn period(&self) -> Option<Duration> {
        Some(self.period)
    }

    async fn run(&mut self) -> Result<(), ServiceError> {
        self.sweep().await
    }
}
