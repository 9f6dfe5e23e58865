//! Files that killed processes were writing, and their probes.

use std::time::Duration;

use async_trait::async_trait;
use safelight_blobs::{BlobError, Blobs, Shard};

use super::period::{old_before, sweep_period};
use crate::maintenance::service::{Service, ServiceError};

/// Shards of the blobs and renditions per sweep: all of them within 32 sweeps.
const SHARDS: usize = 16;

/// Removes what killed writers have left.
pub(crate) struct UnfinishedWrites {
    blobs: Blobs,
    grace: Duration,
    next: Shard,
}

impl UnfinishedWrites {
    pub fn new(blobs: Blobs, grace: Duration) -> Self {
        Self { blobs, grace, next: Shard::FIRST }
    }

    /// Removes what is older than `staged_grace_ms`.
    async fn sweep(&mut self) -> Result<(), BlobError> {
        let Some(before) = old_before(&self.blobs, self.grace).await? else { return Ok(()) };
        let mut removed = self.blobs.remove_unfinished_uploads(before).await?;
        for _ in 0..SHARDS {
            removed += self.blobs.remove_unfinished_objects(self.next, before).await?;
            self.next = self.next.next().unwrap_or(Shard::FIRST);
        }
        if removed > 0 {
            tracing::info!(removed, "removed files that a crash cut off");
        }
        self.blobs.remove_probes(before).await
    }
}

#[async_trait]
impl Service for UnfinishedWrites {
    fn name(&self) -> &'static str {
        "unfinished_writes"
    }

    fn action(&self) -> &'static str {
        "remove what killed writers have left"
    }

    fn period(&self) -> Option<Duration> {
        Some(sweep_period(self.grace))
    }

    async fn run(&mut self) -> Result<(), ServiceError> {
        Ok(self.sweep().await?)
    }
}
