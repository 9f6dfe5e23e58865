//! Staged bytes without an image, left by uploads that were interrupted between storing and recording them.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use safelight_blobs::{BlobError, BlobKey, Blobs, Incoming, StagedUpload};
use safelight_domain::ImageId;
use safelight_removal::{InstallationGuard, RemovalError};
use safelight_store::{PageRequest, Reads};

use super::period::{old_before, sweep_period};
use crate::maintenance::service::{Service, ServiceError};

/// How long an upload takes to be recorded after its bytes are staged.
const RECORDING: Duration = Duration::from_secs(2);

/// Images looked up in one statement.
const BATCH: usize = 500;

/// A crash leaves at most a few uploads between staging and recording.
const LEFT_BY_CRASH: usize = 8;

/// Staged uploads that the database may have forgotten: how many, and when the first and the last were staged.
#[derive(Default)]
struct Forgotten {
    count: usize,
    staged: Option<(DateTime<Utc>, DateTime<Utc>)>,
}

impl Forgotten {
    fn add(&mut self, modified: DateTime<Utc>) {
        let (first, last) = self.staged.unwrap_or((modified, modified));
        self.staged = Some((first.min(modified), last.max(modified)));
        self.count += 1;
    }

    fn is_more_than_a_crash_leaves(&self) -> bool {
        let span = self.staged.map(|(first, last)| last - first).unwrap_or_default();
        self.count > LEFT_BY_CRASH || span.to_std().is_ok_and(|span| span > RECORDING)
    }
}

/// Deletes abandoned staged bytes.
pub(crate) struct StagedBytes {
    images: Arc<dyn Reads>,
    blobs: Blobs,
    guard: InstallationGuard,
    grace: Duration,
    has_looked_back: bool,
}

impl StagedBytes {
    pub fn new(
        images: Arc<dyn Reads>,
        blobs: Blobs,
        guard: InstallationGuard,
        grace: Duration,
    ) -> Self {
        Self { images, blobs, guard, grace, has_looked_back: false }
    }

    /// At the start: staged uploads that are newer than everything that the database knows may be those that an older
    /// copy of it has forgotten. They, and all else that it does not know, are kept for a while; unless they are so
    /// few, and so close together, that a crash explains them.
    async fn look_back(&self) -> Result<(), RemovalError> {
        let page = PageRequest { limit: 1, before: None };
        let newest =
            self.images.list_images(None, &page).await?.images.first().map(|image| image.id);
        let is_newer = |staged: &Incoming| std::future::ready(Some(staged.image) > newest);
        let newer = self.blobs.incoming().try_filter(is_newer);
        let mut batches = std::pin::pin!(newer.try_chunks(BATCH));
        let mut forgotten = Forgotten::default();
        while let Some(batch) = batches.try_next().await.map_err(|error| error.1)? {
            if self.unknown(&batch).await?.next().is_none() {
                continue;
            }
            // One that is being recorded now is known in a moment.
            tokio::time::sleep(RECORDING).await;
            for staged in self.unknown(&batch).await? {
                forgotten.add(staged.modified);
            }
        }
        if forgotten.is_more_than_a_crash_leaves() {
            self.guard.keep_unknown("uploads are staged that are newer than the database").await?;
        }
        Ok(())
    }

    /// Those of `staged` whose image the database does not know.
    async fn unknown<'a>(
        &self,
        staged: &'a [Incoming],
    ) -> Result<impl Iterator<Item = &'a Incoming> + use<'a>, RemovalError> {
        let images: Vec<_> = staged.iter().map(|staged| staged.image).collect();
        let known = self.images.existing_images(&images).await?;
        Ok(staged.iter().filter(move |staged| !known.contains(&staged.image)))
    }

    /// Checks all staged bytes older than `staged_grace_ms`.
    async fn sweep(&self) -> Result<(), RemovalError> {
        let Some(before) = old_before(&self.blobs, self.grace).await? else { return Ok(()) };
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

    async fn clean(&self, staged: &[ImageId]) -> Result<(), RemovalError> {
        let owned = self.images.existing_images(staged).await?;
        // Asked after the look-up, which may have been one in an older copy of the database.
        let may_remove_unknown = self.guard.may_remove_unknown().await?;
        let mut removed = 0_u32;
        for &image in staged {
            if owned.contains(&image) {
                self.finish_promotion(image).await?;
            } else if may_remove_unknown {
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
    async fn finish_promotion(&self, image: ImageId) -> Result<(), RemovalError> {
        match self.images.image(image).await? {
            Some(image) if image.stored_at.is_some() && !image.discarded => {
                let (sha256, bytes) = (image.sha256, image.bytes);
                let staged = StagedUpload { image: image.id, sha256, bytes };
                match self.blobs.promote(&staged).await {
                    // Neither copy is good: `verify` reports that. A damaged one may still help a person.
                    // One that cannot be read must not end the sweep.
                    Err(BlobError::Damaged | BlobError::Store(_)) => Ok(()),
                    promoted => Ok(promoted?),
                }
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
        if !self.has_looked_back {
            self.blobs.confirm().await.map_err(RemovalError::from)?;
            self.look_back().await?;
            self.has_looked_back = true;
        }
        Ok(self.sweep().await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_uploads_of_one_moment_are_left_by_a_crash() {
        let at = |millis| DateTime::from_timestamp_millis(millis).expect("a time");
        let forgotten = |times: &[i64]| {
            let mut forgotten = Forgotten::default();
            for &millis in times {
                forgotten.add(at(millis));
            }
            forgotten.is_more_than_a_crash_leaves()
        };
        assert!(!forgotten(&[]));
        assert!(!forgotten(&[7]));
        assert!(!forgotten(&[1_000, 3_000, 2_000]));
        assert!(forgotten(&[1_000, 3_001]));
        assert!(!forgotten(&[5; LEFT_BY_CRASH]));
        assert!(forgotten(&[5; LEFT_BY_CRASH + 1]));
    }
}
