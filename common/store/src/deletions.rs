//! What goes into and comes out of the store for deletions, and what a deletion finds, on either backend.

use std::time::Duration;

use safelight_domain::{
    ContentHash, Image, ImageId, JobId, Receipt, Removal, RemovedRendition, Rendition, TaskId,
    TraceContext,
};

/// Somebody wants an image deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletionRequest {
    /// The image.
    pub image: ImageId,
    /// The task to make.
    pub task: TaskId,
    /// Its one job.
    pub job: JobId,
    /// Attempts that the job has at most.
    pub max_attempts: u32,
    /// How long some delivery node may still know the image as it was. The job begins no sooner.
    pub after: Duration,
    /// The presets as they are configured, each with its fingerprint: what the receipt names. That of
    /// others there are renditions says how old other images with the same bytes are.
    pub presets: Vec<(String, String)>,
    /// Where in a trace it is asked for; the job keeps it. `None` if that is not traced.
    pub trace: Option<TraceContext>,
}

/// What became of [`super::Store::delete_image`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// The image is gone, and this task removes it.
    Accepted(TaskId),
    /// It was deleted before, by this task.
    Before(TaskId),
    /// It was deleted so long ago that the task is forgotten.
    Forgotten,
    /// There is no such image.
    Unknown,
}

/// Stored bytes that images refer to.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// The blob.
    pub sha256: ContentHash,
    /// The renditions on record.
    pub renditions: Vec<Rendition>,
    /// Whether a job of one of the images has not ended: it may have stored what it has yet to record.
    pub is_busy: bool,
}

/// What is to be removed of `image`, for its owner and for the job.
pub fn plan(image: &Image, request: &DeletionRequest) -> (Receipt, Removal) {
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
