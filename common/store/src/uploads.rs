//! Accepting uploads, and requests for renditions that an image lacks.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use safelight_domain::{
    ContentHash, ErrorCode, ImageFormat, ImageId, JobId, JobKind, Labels, Lane, Owner, Quota,
    Status, TaskId, TaskKind, TraceContext, Usage,
};
use uuid::Uuid;

use crate::StoreError;

/// Accepting uploads, and requests for renditions that an image lacks.
#[async_trait]
pub trait Uploads: Send + Sync + 'static {
    /// Reserves an idempotency key for one upload in flight. If the reservation is neither accepted nor
    /// released within `hold` (its process died), another upload may take it.
    async fn reserve_key(
        &self,
        key: &IdempotencyKey,
        hold: Duration,
    ) -> Result<KeyState, StoreError>;

    /// Releases a reservation after an upload that was not accepted. No effect unless `ticket` still holds
    /// it.
    async fn release_key(&self, ticket: &KeyTicket) -> Result<(), StoreError>;

    /// Holds a reservation for `hold` from now, for a long upload. No effect unless `ticket` still holds it.
    async fn extend_key(&self, ticket: &KeyTicket, hold: Duration) -> Result<(), StoreError>;

    /// Removes up to `limit` idempotency keys older than `age`, but no reservation within its hold. Returns
    /// how many.
    async fn expire_keys(&self, age: Duration, limit: u32) -> Result<u64, StoreError>;

    /// Records an upload in one transaction: image, task, jobs (queued, due immediately), their outbox rows,
    /// and the idempotency key if there is one.
    ///
    /// [`Accepted::KeyLost`], without any effect, if another upload has taken the key's reservation since.
    /// [`Accepted::OverQuota`], without any effect, if the upload does not fit into the owner's quota, however
    /// many uploads are accepted at the same time. Accepting the same upload again, after an answer that was
    /// lost, changes nothing and returns [`Accepted::Yes`] with the time of the first call.
    async fn accept(&self, upload: &NewUpload) -> Result<Accepted, StoreError>;

    /// Queues one thumbnail job for renditions that an image lacks. None is queued if one is open (a
    /// backfill's does not count: it may take long) or if the last one shows that another would not help.
    /// Concurrent calls queue one job in total: on the interactive lane, in a task of the kind `rendition`
    /// that belongs to the image's owner.
    ///
    /// With [`RenditionRequest::damaged`], the record of that rendition is removed in the same transaction. If there
    /// was one, a job is queued even if another is open: that one may have started before. Concurrent calls for the
    /// same record remove it once, and so queue one job in total.
    ///
    /// Asking again with the same ids, after an answer that was lost, queues nothing more.
    async fn request_rendition(&self, request: &RenditionRequest) -> Result<Requested, StoreError>;
}

/// A client's key for one logical upload, unique per owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    /// The client's owner.
    pub owner: Owner,
    /// The key as sent, 1–255 characters.
    pub key: String,
}

/// The right to accept one upload under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyTicket {
    /// The key reserved.
    pub key: IdempotencyKey,
    /// Distinguishes this reservation from a later one of the same key.
    pub token: Uuid,
}

/// The state of a key when an upload arrives with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyState {
    /// It was free: this upload may use it.
    Reserved(KeyTicket),
    /// Another upload with this key is being received.
    InFlight,
    /// An upload with this key was accepted.
    Used {
        /// The task of that upload.
        task: TaskId,
        /// The payload that it carried.
        fingerprint: ContentHash,
    },
}

/// An upload whose bytes are durably stored.
#[derive(Debug, Clone, PartialEq)]
pub struct NewUpload {
    /// The image's id.
    pub image: ImageId,
    /// The task to create.
    pub task: TaskId,
    /// The owner of the image.
    pub owner: Owner,
    /// What the owner may store at most, this upload included.
    pub quota: Quota,
    /// The lane of its jobs.
    pub lane: Lane,
    /// The hash of the bytes.
    pub sha256: ContentHash,
    /// The number of bytes.
    pub bytes: u64,
    /// The format as sniffed.
    pub format: ImageFormat,
    /// What the client calls it, and who may read its bytes.
    pub labels: Labels,
    /// The jobs to queue: one of each kind, with ids in ascending order.
    pub jobs: Vec<(JobId, JobKind)>,
    /// The limit of attempts of each job.
    pub max_attempts: u32,
    /// The reservation and the payload's fingerprint, for an upload with an idempotency key.
    pub key: Option<(KeyTicket, ContentHash)>,
    /// The span that accepts it; its jobs continue that trace. `None` if it is not traced.
    pub trace: Option<TraceContext>,
}

/// The result of [`Uploads::accept`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// Recorded, at this time by the database's clock.
    Yes(DateTime<Utc>),
    /// The idempotency key's reservation was lost; nothing was recorded.
    KeyLost,
    /// The owner already stores this much, and the upload does not fit; nothing was recorded.
    OverQuota(Usage),
}

/// A request for renditions that an image lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenditionRequest {
    /// The image.
    pub image: ImageId,
    /// The task to create.
    pub task: TaskId,
    /// Its one job.
    pub job: JobId,
    /// The job's limit of attempts.
    pub max_attempts: u32,
    /// How long after such a task has succeeded no other is created. If a rendition is still missing then,
    /// another task would most likely not make it either: the workers have other presets.
    pub again_after: Duration,
    /// A rendition on record whose bytes in the blob store are missing or damaged.
    pub damaged: Option<DamagedRendition>,
    /// The span that asks; the job continues that trace. `None` if it is not traced.
    pub trace: Option<TraceContext>,
}

/// The record of a rendition that is to be removed, because its bytes are missing or damaged. A record that was
/// written since, even with the same hash, is another one and stays.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DamagedRendition {
    /// The hash of the original.
    pub of: ContentHash,
    /// The preset's name.
    pub preset: String,
    /// The fingerprint of the preset.
    pub fingerprint: String,
    /// Its format.
    pub format: ImageFormat,
    /// The hash on record.
    pub sha256: ContentHash,
    /// When it was recorded.
    pub made_at: DateTime<Utc>,
}

/// The result of [`Uploads::request_rendition`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requested {
    /// This task was created; its notice is in the outbox.
    Queued(TaskId),
    /// This task has an open thumbnail job of the image.
    Pending(TaskId),
    /// Nothing was queued. This task has the image's last thumbnail job, which failed, was cancelled, or
    /// succeeded a short while ago for such a request. (A job that failed because it could not read the original
    /// counts for a short while only.)
    Recent(TaskId),
    /// The image does not exist or was discarded.
    Gone,
}

/// The thumbnail job of an image that decides over a [`RenditionRequest`]: an open one, else the last.
pub struct LastRenditionJob {
    /// Its task.
    pub task: TaskId,
    /// The kind of its task.
    pub kind: TaskKind,
    /// The job's status.
    pub status: Status,
    /// Why it failed, if it did.
    pub error: Option<ErrorCode>,
    /// Its task ended less than [`RenditionRequest::again_after`] ago.
    pub is_recent: bool,
}

impl RenditionRequest {
    /// The answer after this `last` job; `None` if a new job is to be queued.
    pub fn answer(&self, last: Option<&LastRenditionJob>) -> Option<Requested> {
        let last = last?;
        match last.status {
            Status::Queued | Status::Running => Some(Requested::Pending(last.task)),
            // Only a person may retry it: requests for a picture that cannot be rendered never stop. But an original
            // that could not be read may have been restored meanwhile.
            Status::Failed => {
                let stays =
                    last.is_recent || !last.error.is_some_and(ErrorCode::is_about_the_original);
                stays.then_some(Requested::Recent(last.task))
            }
            // The cancellation was for the request at that time, not for every later one.
            Status::Cancelled => {
                let stays = last.kind != TaskKind::Rendition || last.is_recent;
                stays.then_some(Requested::Recent(last.task))
            }
            // An upload's job has made the presets that were configured then, perhaps fewer than now.
            Status::Succeeded => {
                let is_recent = last.kind == TaskKind::Rendition && last.is_recent;
                // The answer to this request was lost, and its job has ended meanwhile.
                let is_own = last.task == self.task;
                (is_recent || is_own).then_some(Requested::Recent(last.task))
            }
        }
    }
}
