//! What a transaction creates: images, and tasks with their jobs. As JSON they are the parameters of the
//! statements in `create.rs` of each dialect.

use std::{borrow::Cow, time::Duration};

use safelight_domain::{
    ContentHash, ImageFormat, ImageId, JobId, JobKind, Labels, Lane, Owner, TaskId, TaskKind,
    TraceContext, Visibility,
};
use safelight_store::{ChildTask, DeletionRequest, NewBackfill, NewUpload, RenditionRequest};
use serde::Serialize;

use crate::convert::micros;

/// An image to create.
#[derive(Debug, Serialize)]
pub struct NewImage<'a> {
    id: ImageId,
    owner: &'a str,
    sha256: ContentHash,
    bytes: u64,
    format: ImageFormat,
    #[serde(flatten)]
    labels: Cow<'a, Labels>,
}

impl<'a> NewImage<'a> {
    /// The image of an upload.
    pub fn of_upload(upload: &'a NewUpload) -> Self {
        Self {
            id: upload.image,
            owner: upload.owner.storage_name(),
            sha256: upload.sha256,
            bytes: upload.bytes,
            format: upload.format,
            labels: Cow::Borrowed(&upload.labels),
        }
    }

    /// The image that a child of a backfill imports, if it does; with `visibility` unless the picture has its
    /// own.
    pub fn of_child(
        child: &'a ChildTask,
        owner: &'a Owner,
        visibility: Visibility,
    ) -> Option<Self> {
        let import = child.import.as_ref()?;
        let visibility = import.labels.visibility.or(Some(visibility));
        Some(Self {
            id: child.image,
            owner: owner.storage_name(),
            sha256: import.sha256,
            bytes: import.bytes,
            format: import.format,
            labels: Cow::Owned(Labels { visibility, ..import.labels.clone() }),
        })
    }
}

/// A task to create, with its jobs, all queued, and their rows in the outbox.
#[derive(Debug, Serialize)]
pub struct NewTask<'a> {
    id: TaskId,
    kind: TaskKind,
    lane: Lane,
    /// `None`: the owner of the image.
    owner: Option<&'a str>,
    image: Option<ImageId>,
    /// The backfill that creates it. Its jobs belong to the backfill's share of the lane.
    backfill: Option<TaskId>,
    /// Where an import found the image.
    source: Option<&'a str>,
    /// Each with the version that its worker must understand.
    jobs: Vec<(JobId, JobKind, u32)>,
    max_attempts: u32,
    trace: Option<String>,
    /// How long until the jobs are due, in microseconds.
    after_us: i64,
    /// The jobs are due no sooner than the last lease on the image's jobs runs out.
    after_leases: bool,
}

impl<'a> NewTask<'a> {
    /// The task of an upload.
    pub fn of_upload(upload: &'a NewUpload) -> Self {
        Self {
            owner: Some(upload.owner.storage_name()),
            lane: upload.lane,
            max_attempts: upload.max_attempts,
            trace: trace(upload.trace),
            ..Self::of_image(upload.task, TaskKind::Upload, upload.image, &upload.jobs)
        }
    }

    /// The task of a request for renditions.
    pub fn of_rendition_request(request: &RenditionRequest, jobs: &[(JobId, JobKind)]) -> Self {
        Self {
            max_attempts: request.max_attempts,
            trace: trace(request.trace),
            ..Self::of_image(request.task, TaskKind::Rendition, request.image, jobs)
        }
    }

    /// The task of a deletion. Workers that hold a lease may still write for the image: they do not renew
    /// leases on cancelled jobs.
    pub fn of_deletion(request: &DeletionRequest, jobs: &[(JobId, JobKind)]) -> Self {
        Self {
            max_attempts: request.max_attempts,
            trace: trace(request.trace),
            after_us: micros(request.after),
            after_leases: true,
            ..Self::of_image(request.task, TaskKind::Delete, request.image, jobs)
        }
    }

    /// The task of a backfill, which has no jobs.
    pub fn of_backfill(new: &'a NewBackfill) -> Self {
        Self {
            id: new.task,
            kind: TaskKind::Backfill,
            lane: Lane::Bulk,
            owner: Some(new.owner.storage_name()),
            image: None,
            backfill: None,
            source: None,
            jobs: Vec::new(),
            max_attempts: 1,
            trace: None,
            after_us: micros(Duration::ZERO),
            after_leases: false,
        }
    }

    /// A task that a backfill creates for one image.
    pub fn of_child(child: &'a ChildTask, backfill: TaskId, max_attempts: u32) -> Self {
        Self {
            lane: Lane::Bulk,
            backfill: Some(backfill),
            source: child.import.as_ref().map(|import| import.source.as_str()),
            max_attempts,
            ..Self::of_image(child.task, child.kind, child.image, &child.jobs)
        }
    }

    /// A task about an image of its owner, due immediately.
    fn of_image(id: TaskId, kind: TaskKind, image: ImageId, jobs: &[(JobId, JobKind)]) -> Self {
        Self {
            id,
            kind,
            lane: Lane::Interactive,
            owner: None,
            image: Some(image),
            backfill: None,
            source: None,
            jobs: jobs.iter().map(|&(id, kind)| (id, kind, kind.needs_version())).collect(),
            max_attempts: 1,
            trace: None,
            after_us: micros(Duration::ZERO),
            after_leases: false,
        }
    }
}

fn trace(context: Option<TraceContext>) -> Option<String> {
    context.map(|context| context.to_string())
}
