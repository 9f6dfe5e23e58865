//! Deleting images, and removing the bytes of discarded ones.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::{
    ContentHash, Image, ImageId, JobId, Receipt, Removal, RemovedRendition, Rendition, TaskId,
    TraceContext,
};

use crate::StoreError;

/// Deleting images, and removing the bytes of discarded ones.
#[async_trait]
pub trait Deletions: Send + Sync + 'static {
    /// Deletes an image. From now on it is discarded; open jobs of its tasks are
    /// cancelled; its metadata is removed, except the hash of its bytes. A task with one
    /// job is queued on the interactive lane for the image's owner. The job is due once no worker can be
    /// writing for the image any more (the leases of the cancelled jobs have run out) and
    /// [`DeletionRequest::after`] has passed.
    ///
    /// Deleting it again changes nothing, and returns the same task as long as it exists.
    async fn delete_image(&self, request: &DeletionRequest) -> Result<Deletion, StoreError>;

    /// What the deletion `task` has to remove; `None` if it is no deletion, or done.
    async fn removal(&self, task: TaskId) -> Result<Option<Removal>, StoreError>;

    /// Those of `hashes` that an image refers to whose bytes are not removed, discarded or not.
    async fn references(&self, hashes: &[ContentHash]) -> Result<Vec<Reference>, StoreError>;

    /// Up to `limit` images that were discarded at least `age` ago and whose bytes are still to be removed,
    /// oldest first, with their renditions. Without deleted images, which have a job, and without images for
    /// which a worker may still be writing: all leases on their cancelled jobs have run out.
    async fn discarded(&self, limit: u32, age: Duration) -> Result<Vec<Image>, StoreError>;

    /// Whether an image that is not discarded refers to this blob.
    async fn is_blob_wanted(&self, sha256: &ContentHash) -> Result<bool, StoreError>;

    /// Decides that no image needs a blob, and removes the records of its renditions and placeholder.
    /// Returns `false`, without any effect, if an image that is not discarded refers to the blob.
    async fn forget_blob(&self, sha256: &ContentHash) -> Result<bool, StoreError>;

    /// Records that all bytes of a discarded image are removed.
    async fn mark_removed(&self, id: ImageId) -> Result<(), StoreError>;
}

/// A request to delete an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletionRequest {
    /// The image.
    pub image: ImageId,
    /// The task to create.
    pub task: TaskId,
    /// Its one job.
    pub job: JobId,
    /// The job's limit of attempts.
    pub max_attempts: u32,
    /// How long a delivery node may still have the image cached. The job starts no sooner.
    pub after: Duration,
    /// The configured presets, each with its fingerprint: the receipt names no others. Renditions of other
    /// presets would reveal how old other images with the same bytes are.
    pub presets: Vec<(String, String)>,
    /// The span that asks; the job continues that trace. `None` if it is not traced.
    pub trace: Option<TraceContext>,
}

/// The result of [`Deletions::delete_image`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// The image is gone, and this task removes it.
    Accepted(TaskId),
    /// It was deleted before, by this task.
    Before(TaskId),
    /// It was deleted so long ago that the task was pruned.
    Forgotten,
    /// The image does not exist.
    Unknown,
}

/// Stored bytes that images refer to.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// The blob.
    pub sha256: ContentHash,
    /// Its recorded renditions.
    pub renditions: Vec<Rendition>,
    /// Whether an image has an open job, which may have stored objects that it has yet to record.
    pub is_busy: bool,
}

/// What a deletion removes of `image`: the receipt for its owner, and the list for the job.
pub fn plan_removal(image: &Image, request: &DeletionRequest) -> (Receipt, Removal) {
    let named = |made: &&Rendition| {
        let mut presets = request.presets.iter();
        presets.any(|(name, print)| (name, print) == (&made.preset, &made.fingerprint))
    };
    let renditions = image.renditions.iter().filter(named).map(|made| RemovedRendition {
        preset: made.preset.clone(),
        format: made.format,
        bytes: made.bytes,
    });
    let receipt = Receipt { bytes: image.bytes, renditions: renditions.collect(), proxies: None };
    let made = image.renditions.iter();
    let removal = Removal {
        presets: made.clone().map(|made| made.preset.clone()).collect(),
        objects: [image.sha256].into_iter().chain(made.map(|made| made.sha256)).collect(),
    };
    (receipt, removal)
}
