//! Removes bytes that images may share. Every step may be cut off, and repeated by any process (ADR 4).

use std::sync::Arc;

use safelight_blobs::{BlobKey, Blobs, Quarantined, Trashed};
use safelight_domain::{ContentHash, Image};
use safelight_store::Deletions;

use super::{InstallationGuard, error::RemovalError};

/// Removes bytes, unless an image needs them.
#[derive(Clone)]
pub struct Remover {
    deletions: Arc<dyn Deletions>,
    blobs: Blobs,
    guard: InstallationGuard,
}

/// Why bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// The owner of an image wants it.
    Deleted,
    /// No image has them, as far as the database knows.
    Unknown,
}

/// The bytes of a blob in the trash.
struct Moved {
    /// Those about which this process decides.
    trash: Trashed,
    /// Whether other processes are about to decide about more.
    by_others_too: bool,
}

impl Remover {
    /// Asks `deletions` which bytes images need, and `guard` whether it knows that.
    pub fn new(deletions: Arc<dyn Deletions>, blobs: Blobs, guard: InstallationGuard) -> Self {
        Self { deletions, blobs, guard }
    }

    /// Removes an image's bytes, those of its blob only if no other image needs them.
    pub async fn remove_image(&self, image: &Image) -> Result<(), RemovalError> {
        self.blobs.confirm().await?;
        // No other image shares staged bytes.
        self.blobs.delete(&BlobKey::Incoming(image.id)).await?;
        if let Some(moved) = self.move_content(&image.sha256).await? {
            // Before the decision: what is set aside later may be that of a later upload.
            let quarantined = self.blobs.quarantined_of(&image.sha256).await?;
            if self.decide(&image.sha256, moved.trash, Reason::Deleted).await? {
                // What a collection of garbage has set aside does not outlive the image either.
                self.delete_quarantined(&quarantined).await?;
                self.blobs.remove_unfinished_renditions(&image.sha256).await?;
                if moved.by_others_too {
                    return Err(RemovalError::BeingMoved);
                }
            }
        }
        // A bucket says of any object that it was deleted. It counts only in the installation's own.
        Ok(self.blobs.confirm().await?)
    }

    /// Removes the bytes of an upload that was not recorded, unless an image needs them. Keeps them if the database may
    /// be an older copy, which does not know the image that has had them for long.
    pub async fn remove_unrecorded(&self, blob: &ContentHash) -> Result<(), RemovalError> {
        if self.guard.may_remove_unknown().await?
            && let Some(moved) = self.move_content(blob).await?
        {
            self.decide(blob, moved.trash, Reason::Unknown).await?;
        }
        Ok(())
    }

    /// Decides about what processes that died have left in the trash. As long as the database may know too little, only
    /// restores what an image needs.
    pub async fn resume(&self) -> Result<(), RemovalError> {
        let may_remove = self.guard.may_remove_unknown().await?;
        for (blob, others) in self.blobs.trash_of_others(&Trashed::default()).await? {
            if may_remove || self.deletions.is_blob_wanted(&blob).await? {
                self.decide(&blob, others.abandoned, Reason::Unknown).await?;
            }
        }
        Ok(())
    }

    /// Moves a blob with all of its renditions to the trash. `None` if an image needs it.
    async fn move_content(&self, blob: &ContentHash) -> Result<Option<Moved>, RemovalError> {
        // Also those that a job stored and did not come to record.
        let mut keys = self.blobs.renditions_of(blob).await?;
        keys.push(BlobKey::Blob(*blob));
        // So that a blob that is still needed is not missing while it is in the trash.
        if self.deletions.is_blob_wanted(blob).await? {
            return Ok(None);
        }
        safelight_fail_points::hit("removal.looked").await;
        let own = self.blobs.trash(&keys).await?;
        safelight_fail_points::hit("removal.moved").await;
        let others = self.blobs.trash_of_others(&own).await?.remove(blob).unwrap_or_default();
        Ok(Some(Moved { trash: own.and(others.abandoned), by_others_too: others.is_moving }))
    }

    /// Call it only after the move: then it sees every upload that stored the same content before the move.
    /// It decides only about objects that this process moved, or that were abandoned. Returns whether no image needs
    /// the blob.
    async fn decide(
        &self,
        blob: &ContentHash,
        trashed: Trashed,
        reason: Reason,
    ) -> Result<bool, RemovalError> {
        // The guard once more, and last: another server may have become the database since.
        let is_removed = self.deletions.forget_blob(blob).await?
            && (reason == Reason::Deleted || self.guard.may_remove_unknown().await?);
        if !is_removed {
            self.blobs.restore(trashed).await?;
            return Ok(false);
        }
        safelight_fail_points::hit("removal.decided").await;
        self.blobs.delete_trashed(trashed).await?;
        Ok(true)
    }

    /// A rendition can be made again. The move of a blob must be over: until then, its mover may have to take it back.
    async fn delete_quarantined(&self, objects: &[Quarantined]) -> Result<(), RemovalError> {
        if objects.is_empty() {
            return Ok(());
        }
        let ended = self.blobs.ended_moves().await?;
        let may_be_moving = |object: &Quarantined| {
            matches!(object.key, BlobKey::Blob(_)) && !ended.include(object.written_at)
        };
        for object in objects.iter().filter(|object| !may_be_moving(object)) {
            self.blobs.delete_from_quarantine(object).await?;
        }
        if objects.iter().any(may_be_moving) { Err(RemovalError::BeingMoved) } else { Ok(()) }
    }
}
