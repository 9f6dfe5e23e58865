//! Staged bytes without an image, left by uploads that were interrupted between storing and recording them.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::TimeDelta;
use futures::TryStreamExt;
use safelight_blobs::{BlobError, BlobKey, Blobs, Incoming, StagedUpload};
use safelight_domain::ImageId;
use safelight_store::{Reads, StoreError};

use super::period::sweep_period;
use crate::maintenance::service::{Service, ServiceError};

/// Images looked up in one statement.
const BATCH: usize = 500;

#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

/// Deletes abandoned staged bytes.
pub(crate) struct StagedBytes {
    images: Arc<dyn Reads>,
    blobs: Blobs,
    grace: Duration,
}

impl StagedBytes {
    pub fn new(images: Arc<dyn Reads>, blobs: Blobs, grace: Duration) -> Self {
        Self { images, blobs, grace }
    }

    /// Checks all staged bytes older than `staged_grace_ms`, by the store's clock: if this machine's clock
    /// was ahead, new bytes would seem old.
    async fn sweep(&self) -> Result<(), SweepError> {
        let now = self.blobs.clock().await?;
        let grace = TimeDelta::from_std(self.grace).ok();
        let Some(before) = grace.and_then(|grace| now.checked_sub_signed(grace)) else {
            return Ok(());
        };
        let cut_off = self.blobs.remove_cut_off(before).await?;
        if cut_off > 0 {
            tracing::info!(removed = cut_off, "removed uploads that a crash cut off");
        }
        let old = |staged: Incoming| {
            std::future::ready(Ok((staged.modified < before).then_some(staged.image)))
        };
        let mut batches =
            std::pin::pin!(self.blobs.incoming().try_filter_map(old).try_chunks(BATCH));
        while let Some(batch) = batches.try_next().await.map_err(|error| error.1)? {
            self.clean(&batch).await?;
        }
        Ok(())
    }

    async fn clean(&self, staged: &[ImageId]) -> Result<(), SweepError> {
        let owned = self.images.existing_images(staged).await?;
        let mut removed = 0_u32;
        for &image in staged {
            if owned.contains(&image) {
                self.finish_promotion(image).await?;
            } else {
                self.blobs.delete(&BlobKey::Incoming(image)).await?;
                removed += 1;
            }
        }
        if removed > 0 {
            tracing::info!(removed, "removed staged bytes of uploads that were never accepted");
        }
        Ok(())
    }

    /// Promotes staged bytes of an image whose write job is done: its promotion was interrupted (object
    /// stores copy, then delete), or they are a stale worker's. Promoting them again cannot lose anything;
    /// deleting them could. (Those of a discarded image are removed with it.)
    async fn finish_promotion(&self, image: ImageId) -> Result<(), SweepError> {
        match self.images.image(image).await? {
            Some(image) if image.stored_at.is_some() && !image.discarded => {
                let (sha256, bytes) = (image.sha256, image.bytes);
                let staged = StagedUpload { image: image.id, sha256, bytes };
                Ok(self.blobs.promote(&staged).await?)
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Service for StagedBytes {
    fn name(&self) -> &'static str {
        "staged_bytes"
    }

    fn action(&self) -> &'static str {
        "clean up staged bytes"
    }

    fn period(&self) -> Option<Duration> {
        Some(sweep_period(self.grace))
    }

    async fn run(&mut self) -> Result<(), ServiceError> {
        Ok(self.sweep().await?)
    }
}
