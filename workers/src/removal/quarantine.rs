//! Moves unreferenced objects to the quarantine, and back if an image needs them (ADR 4). Every step may be cut
//! off, and repeated by any process.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use safelight_blobs::{BlobKey, Blobs, Quarantined, Stored, TakenBack};
use safelight_domain::{ContentHash, TaskId};
use safelight_removal::RemovalError;
use safelight_store::{Deletions, Reference};

/// Objects to move to the quarantine.
pub(crate) struct Unreferenced {
    /// The blob that they belong to.
    pub blob: ContentHash,
    /// Whether some image has that blob, so that only renditions of it go.
    pub is_blob_referred_to: bool,
    /// The objects.
    pub objects: Vec<Stored>,
}

/// What became of objects in the quarantine.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sifted {
    /// Moved back, because an image needs them.
    pub returned: u64,
    /// Deleted after their time.
    pub deleted: u64,
}

/// Moves objects to the quarantine, and empties it.
#[derive(Clone)]
pub(crate) struct Quarantine {
    deletions: Arc<dyn Deletions>,
    blobs: Blobs,
    keep: Duration,
}

impl Quarantine {
    /// `keep` is how long objects stay in the quarantine; zero if they are deleted at once.
    pub fn new(deletions: Arc<dyn Deletions>, blobs: Blobs, keep: Duration) -> Self {
        Self { deletions, blobs, keep }
    }

    /// Moves objects to the quarantine for the collection `run`, unless an image needs them. Returns whether none
    /// does. `now` is the time by the store's clock.
    pub async fn set_aside(
        &self,
        unreferenced: &Unreferenced,
        run: TaskId,
        now: DateTime<Utc>,
    ) -> Result<bool, RemovalError> {
        let Unreferenced { blob, is_blob_referred_to, objects } = unreferenced;
        // So that a blob that is still needed is not missing while it is looked up again.
        if !is_blob_referred_to && self.deletions.is_blob_wanted(blob).await? {
            return Ok(false);
        }
        safelight_fail_points::hit("gc.looked").await;
        let mut moved = Vec::new();
        for object in objects {
            moved.extend(self.blobs.quarantine(object, run, now).await?);
        }
        safelight_fail_points::hit("gc.moved").await;
        // Only after the move: this look sees every upload that stored the same content before the move.
        if self.is_any_needed(unreferenced).await? {
            for object in &moved {
                self.blobs.take_back(object).await?;
            }
            return Ok(false);
        }
        safelight_fail_points::hit("gc.decided").await;
        if self.keep.is_zero() {
            for object in &moved {
                self.blobs.delete_from_quarantine(object).await?;
            }
        }
        Ok(true)
    }

    async fn is_any_needed(&self, unreferenced: &Unreferenced) -> Result<bool, RemovalError> {
        let Unreferenced { blob, is_blob_referred_to, objects } = unreferenced;
        if !is_blob_referred_to {
            // The records of renditions go with it: an equal upload makes them again.
            return Ok(!self.deletions.forget_blob(blob).await?);
        }
        let references = self.deletions.references(&[*blob]).await?;
        let mut keys = objects.iter().filter_map(|object| object.key.as_ref());
        Ok(keys.any(|key| references.iter().any(|reference| refers_to(reference, key))))
    }

    /// Moves those of `objects` back that an image needs, and deletes the others if their time is over. Without
    /// `may_delete`, nothing is deleted. Leaves those alone that their mover may still be working on.
    pub async fn sift(
        &self,
        objects: &[Quarantined],
        now: DateTime<Utc>,
        may_delete: bool,
    ) -> Result<Sifted, RemovalError> {
        let mut sifted = Sifted::default();
        if objects.is_empty() {
            return Ok(sifted);
        }
        let ended = self.blobs.ended_moves().await?;
        let references = references(&*self.deletions, objects.iter().map(|one| one.blob)).await?;
        for object in objects.iter().filter(|one| ended.include(one.written_at)) {
            let reference = references.get(&object.blob);
            // Not for an image whose own removal is on its way.
            if reference.is_some_and(|reference| refers_to(reference, &object.key))
                && self.deletions.is_blob_wanted(&object.blob).await?
                && self.blobs.take_back(object).await? == TakenBack::Yes
            {
                tracing::warn!(
                    object = %object.key.path(), collection = %object.run,
                    "an image needs this object: moved back from the quarantine"
                );
                sifted.returned += 1;
            } else if may_delete && object.is_due(self.keep, now) {
                self.blobs.delete_from_quarantine(object).await?;
                sifted.deleted += 1;
            }
        }
        Ok(sifted)
    }
}

/// What refers to the blobs of some objects.
pub(crate) async fn references(
    deletions: &dyn Deletions,
    blobs: impl Iterator<Item = ContentHash>,
) -> Result<HashMap<ContentHash, Reference>, RemovalError> {
    let mut hashes: Vec<ContentHash> = blobs.collect();
    hashes.sort_unstable();
    hashes.dedup();
    let found = deletions.references(&hashes).await?;
    Ok(found.into_iter().map(|reference| (reference.sha256, reference)).collect())
}

/// Whether an object is needed by images that have its blob: the blob itself always, a rendition if it is
/// recorded, or if some job may still record it.
pub(crate) fn refers_to(reference: &Reference, key: &BlobKey) -> bool {
    let blob = reference.sha256;
    let is_recorded =
        || reference.renditions.iter().any(|made| BlobKey::rendition(blob, made) == *key);
    *key == BlobKey::Blob(blob) || reference.is_busy || is_recorded()
}

/// Groups objects by their blobs.
pub(crate) fn by_blob(
    objects: impl IntoIterator<Item = (ContentHash, bool, Stored)>,
) -> Vec<Unreferenced> {
    let mut blobs: BTreeMap<(ContentHash, bool), Vec<Stored>> = BTreeMap::new();
    for (blob, is_blob_referred_to, object) in objects {
        blobs.entry((blob, is_blob_referred_to)).or_default().push(object);
    }
    let groups = blobs.into_iter();
    let group = |((blob, is_blob_referred_to), objects)| Unreferenced {
        blob,
        is_blob_referred_to,
        objects,
    };
    groups.map(group).collect()
}
