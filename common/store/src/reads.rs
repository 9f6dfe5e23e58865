//! Reading tasks and images.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use safelight_domain::{ErrorCode, Image, ImageId, JobKind, Owner, Status, Task, TaskId, TaskKind};

use crate::StoreError;

/// Reading tasks and images.
#[async_trait]
pub trait Reads: Send + Sync + 'static {
    /// A task with its jobs (in the order of their creation) and its image.
    async fn task(&self, id: TaskId) -> Result<Option<Task>, StoreError>;

    /// The versions of those of `ids` that exist, in any order: one query for 10,000 watched tasks and more.
    async fn task_versions(&self, ids: &[TaskId]) -> Result<Vec<TaskVersion>, StoreError>;

    /// Tasks, newest first, with the same content as [`Reads::task`].
    async fn list_tasks(
        &self,
        filter: &TaskFilter,
        page: &PageRequest<TaskId>,
    ) -> Result<TaskPage, StoreError>;

    /// An image with its renditions and placeholder.
    async fn image(&self, id: ImageId) -> Result<Option<Image>, StoreError>;

    /// Images of one owner, or of all, newest first, without discarded ones.
    async fn list_images(
        &self,
        owner: Option<&Owner>,
        page: &PageRequest<ImageId>,
    ) -> Result<ImagePage, StoreError>;

    /// The last task of this image, an upload or one for renditions, that has a job of this kind: it shows
    /// why the result of such a job is missing.
    async fn last_task_of_image(
        &self,
        id: ImageId,
        kind: JobKind,
    ) -> Result<Option<Task>, StoreError>;

    /// Those of `ids` that are images. Distinguishes orphaned staged bytes from accepted ones.
    async fn existing_images(&self, ids: &[ImageId]) -> Result<Vec<ImageId>, StoreError>;
}

/// A task's version and status, for watchers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskVersion {
    /// The task.
    pub id: TaskId,
    /// Grows with every change.
    pub version: i64,
    /// Its status.
    pub status: Status,
}

/// Which tasks to list; an empty filter lists all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Only tasks with this status.
    pub status: Option<Status>,
    /// Only tasks of this kind.
    pub kind: Option<TaskKind>,
    /// Only tasks with a job of this kind that also matches `status` and `code`.
    pub job_kind: Option<JobKind>,
    /// Only tasks with a job whose last failure has this code.
    pub code: Option<ErrorCode>,
    /// Only tasks of this owner.
    pub owner: Option<Owner>,
    /// Only tasks accepted before this time.
    pub created_before: Option<DateTime<Utc>>,
    /// Only tasks accepted at this time or later.
    pub created_after: Option<DateTime<Utc>>,
}

/// A keyset page, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest<Id> {
    /// Rows older than this one; from the newest if `None`.
    pub before: Option<Id>,
    /// The limit of rows, 1–500.
    pub limit: u32,
}

impl<Id> PageRequest<Id> {
    /// The same page by ids of another type.
    pub fn map<Other>(self, id: impl FnOnce(Id) -> Other) -> PageRequest<Other> {
        PageRequest { before: self.before.map(id), limit: self.limit }
    }
}

/// A page of tasks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaskPage {
    /// The tasks.
    pub tasks: Vec<Task>,
    /// Where the next page starts; `None` if this was the last.
    pub next: Option<TaskId>,
}

/// A page of images.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImagePage {
    /// The images.
    pub images: Vec<Image>,
    /// Where the next page starts; `None` if this was the last.
    pub next: Option<ImageId>,
}
