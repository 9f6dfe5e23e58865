//! Removes bytes that images may share. Every step may be cut off, and repeated by any process (ADR 4).

use std::sync::Arc;

use safelight_blobs::{BlobKey, Blobs};
use safelight_domain::{ContentHash, Image};
use safelight_store::Deletions;

use super::error::RemovalError;

/// Removes bytes, unless an image needs them.
#[derive(Clone)]
pub struct Remover {
    deletions: Arc<dyn Deletions>,
    blobs: Blobs,
}

impl Remover {
    /// Asks `deletions` which bytes images need.
    pub fn new(deletions: Arc<dyn Deletions>, blobs: Blobs) -> Self {
        Self { deletions, blobs }
    }

    /// Removes an image's bytes, those of its blob only if no other image needs them.
    pub async fn remove_image(&self, image: &Image) -> Result<(), RemovalError> {
        self.blobs.confirm().await?;
        // No other image shares staged bytes.
        self.blobs.delete(&BlobKey::Incoming(image.id)).await?;
        if self.remove_content(&image.sha256).await? {
            // What a collection of garbage has set aside does not outlive the image either.
            self.blobs.delete_quarantined(&image.sha256).await?;
            self.blobs.remove_unfinished_renditions(&image.sha256).await?;
        }
        // A bucket says of any object that it was deleted. It counts only in the installation's own.
        Ok(self.blobs.confirm().await?)
    }

    /// Removes a blob with all of its renditions, unless an image needs it. Returns whether none does.
    pub async fn remove_content(&self, blob: &ContentHash) -> Result<bool, RemovalError> {
        // Also those that a job stored and did not come to record.
        let mut keys = self.blobs.renditions_of(blob).await?;
        keys.push(BlobKey::Blob(*blob));
        self.remove_blob(blob, &keys).await
    }

    /// Removes these objects of a blob, unless an image needs it. Returns whether none does.
    pub async fn remove_blob(
        &self,
        blob: &ContentHash,
        keys: &[BlobKey],
    ) -> Result<bool, RemovalError> {
        // So that a blob that is still needed is not missing while it is in the trash.
        if self.deletions.is_blob_wanted(blob).await? {
            return Ok(false);
        }
        safelight_fail_points::hit("removal.looked").await;
        self.blobs.trash(keys).await?;
        safelight_fail_points::hit("removal.moved").await;
        self.decide(blob).await
    }

    /// Decides about everything in the trash, which processes that died have left there. Unless
    /// `may_remove_unknown`, only restores what an image needs.
    pub async fn resume(&self, may_remove_unknown: bool) -> Result<(), RemovalError> {
        for blob in self.blobs.trashed_blobs().await? {
            if may_remove_unknown || self.deletions.is_blob_wanted(&blob).await? {
                self.decide(&blob).await?;
            }
        }
        Ok(())
    }

    /// Call it only after the move: then it sees every upload that stored the same content before the move.
    /// It decides only about objects that were in the trash before; another process decides about those that
    /// it moves later.
    async fn decide(&self, blob: &ContentHash) -> Result<bool, RemovalError> {
        let trashed = self.blobs.trashed(blob).await?;
        if self.deletions.forget_blob(blob).await? {
            safelight_fail_points::hit("removal.decided").await;
            self.blobs.delete_trashed(trashed).await?;
            Ok(true)
        } else {
            self.blobs.restore(trashed).await?;
            Ok(false)
        }
    }
}
