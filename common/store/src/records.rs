//! What goes into and comes out of the store.

use std::time::Duration;

use chrono::{DateTime, Utc};
use safelight_domain::{
    BackfillSpec, ContentHash, ErrorCode, Failure, Image, ImageFacts, ImageFormat, ImageId, JobId,
    JobKind, JobNotice, Lane, Owner, Placeholder, Quota, Rendition, Status, Task, TaskId, TaskKind,
    TraceContext, Usage, Visibility,
};

/// A client's key for one logical upload, unique per owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey {
    /// Whose key it is.
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
    pub token: uuid::Uuid,
}

/// What a key stands for when an upload arrives with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyState {
    /// Nothing yet: this upload may use it.
    Reserved(KeyTicket),
    /// Another upload with this key is being received.
    InFlight,
    /// An upload with this key was accepted.
    Used {
        /// What it made.
        task: TaskId,
        /// The payload that it carried.
        fingerprint: ContentHash,
    },
}

/// An upload whose bytes are durably staged.
#[derive(Debug, Clone, PartialEq)]
pub struct NewUpload {
    /// The image's id, under which its bytes are staged.
    pub image: ImageId,
    /// The task to make.
    pub task: TaskId,
    /// Whose it becomes.
    pub owner: Owner,
    /// Who may read its bytes.
    pub visibility: Visibility,
    /// What its owner may store at most, this upload included.
    pub quota: Quota,
    /// Which lane its jobs take.
    pub lane: Lane,
    /// The hash of the bytes.
    pub sha256: ContentHash,
    /// How many there are.
    pub bytes: u64,
    /// The format as sniffed.
    pub format: ImageFormat,
    /// Title, if the client gave one.
    pub title: Option<String>,
    /// Tags, none if the client gave none.
    pub tags: Vec<String>,
    /// File name, if the client gave one.
    pub filename: Option<String>,
    /// The jobs to queue: one of each kind, ids chosen by the caller in ascending order.
    pub jobs: Vec<(JobId, JobKind)>,
    /// Attempts that each job has at most.
    pub max_attempts: u32,
    /// The reservation and the payload's fingerprint, for an upload with an idempotency key.
    pub key: Option<(KeyTicket, ContentHash)>,
    /// Where in a trace it is made; its jobs keep it. `None` if that is not traced.
    pub trace: Option<TraceContext>,
}

/// What became of [`super::Store::accept`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// Recorded, at this time by the database's clock.
    Yes(DateTime<Utc>),
    /// The idempotency key's reservation was lost; nothing was recorded.
    KeyLost,
    /// The owner has stored this much, and the upload does not fit beside it; nothing was recorded.
    OverQuota(Usage),
}

/// Somebody asks for renditions that an image lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenditionRequest {
    /// The image.
    pub image: ImageId,
    /// The task to make.
    pub task: TaskId,
    /// Its one job.
    pub job: JobId,
    /// Attempts that the job has at most.
    pub max_attempts: u32,
    /// How long after such a task has succeeded none is made again. If a rendition is missing all the
    /// same, another would most likely not make it either: the workers have other presets.
    pub again_after: Duration,
    /// Where in a trace it is asked for; the job keeps it. `None` if that is not traced.
    pub trace: Option<TraceContext>,
}

/// What became of [`super::Store::request_rendition`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requested {
    /// This task was made; its notice is to be rung.
    Queued(TaskId),
    /// This task has a thumbnail job of the image that has not ended.
    Pending(TaskId),
    /// Nothing was queued. This task has the image's last thumbnail job, which failed, was cancelled,
    /// or succeeded a short while ago for such a request.
    Recent(TaskId),
    /// There is no such image, or it was discarded.
    Gone,
}

/// How many messages each queue has room for. One that is not named has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueCapacity(pub Vec<(JobKind, Lane, u32)>);

impl QueueCapacity {
    /// As much for every queue.
    pub fn each(places: u32) -> Self {
        let queues =
            JobKind::ALL.iter().flat_map(|&kind| Lane::ALL.iter().map(move |&l| (kind, l)));
        Self(queues.map(|(kind, lane)| (kind, lane, places)).collect())
    }

    /// The places of a queue.
    pub fn of(&self, kind: JobKind, lane: Lane) -> u32 {
        let found = self.0.iter().find(|(k, l, _)| (*k, *l) == (kind, lane));
        found.map_or(0, |(_, _, places)| *places)
    }
}

/// What [`super::Store::take_unpublished`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutboxBatch {
    /// To be published now.
    pub due: Vec<JobNotice>,
    /// How long until the next row comes due, those just taken included; zero if more may be due
    /// because a queue's room was used up; `None` if nothing will. Rows that are due and found no
    /// room are not counted.
    pub next_in: Option<Duration>,
}

/// The right to run one attempt of one job. The fence of every effect: see
/// [`super::Store::settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The job.
    pub job: JobId,
    /// Which attempt, counted without gaps over all claims: grows with each claim, hand-backs
    /// included, and is never given out twice.
    pub fence: u32,
}

/// What a claim came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// Run it.
    Run(Box<ClaimedJob>),
    /// There is nothing to run: done, cancelled, not due, held by another, unknown.
    Nothing,
    /// The job waits for a worker of a newer release.
    Newer,
}

/// A job with what its handler needs.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedJob {
    /// The right to run it.
    pub lease: Lease,
    /// Its task.
    pub task: TaskId,
    /// What to do.
    pub kind: JobKind,
    /// Its lane.
    pub lane: Lane,
    /// Attempts begun and not handed back, this one included.
    pub attempt: u32,
    /// Attempts at most.
    pub max_attempts: u32,
    /// The image to work on, with the renditions that its blob already has.
    pub image: Image,
    /// What the backfill that made its task was asked to do; `None` for all other tasks.
    pub backfill: Option<BackfillSpec>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// A write job stored the blob and learnt these facts.
    Written(ImageFacts),
    /// A thumbnail job stored what its image's blob lacked (upserted: equal uploads share it).
    Rendered {
        /// The renditions made.
        renditions: Vec<Rendition>,
        /// The placeholder; `None` leaves what there is.
        placeholder: Option<Placeholder>,
    },
    /// A verify job read everything back.
    Verified {
        /// Renditions that were bad or missing and were made anew (upserted).
        repaired: Vec<Rendition>,
        /// Renditions that were bad or missing and that nothing can make any more: their records go.
        forgotten: Vec<Rendition>,
        /// What was found, for people; `None` if all was well.
        note: Option<String>,
    },
    /// A delete job has removed all that was stored of its image, as far as it was its alone. What the row
    /// still knew of it is forgotten, and what the job knew.
    Deleted {
        /// The caching proxies that have confirmed.
        proxies: u32,
    },
    /// It failed; the next attempt, if there is one left, is due after the delay.
    Retry(Failure, Duration),
    /// It failed for good.
    Failed(Failure),
    /// It was handed back unfinished: queued again, due at once, and the attempt does not count.
    Released,
}

/// What became of [`super::Store::settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Recorded.
    Applied,
    /// The lease was no longer held; nothing was recorded.
    Stale,
}

/// What became of [`super::Store::renew`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renewed {
    /// Still held; the others are not.
    pub held: Vec<Lease>,
}

/// A task's place in its life, for watchers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskVersion {
    /// The task.
    pub id: TaskId,
    /// Grows with every change.
    pub version: i64,
    /// Where it stands.
    pub status: Status,
}

/// Which tasks to list; an empty filter lists all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// Only tasks in this state.
    pub status: Option<Status>,
    /// Only tasks of this kind.
    pub kind: Option<TaskKind>,
    /// Only tasks with a job of this kind that meets the rest: is in the state `status`, has failed
    /// with `code`.
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
    /// Rows at most, 1–500.
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

/// How many jobs are where.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct JobCount {
    /// The kind.
    pub kind: JobKind,
    /// The lane.
    pub lane: Lane,
    /// The state.
    pub status: Status,
    /// How many.
    pub count: u64,
    /// How many of them are queued and due.
    pub due: u64,
    /// Seconds since the oldest of them came due; zero where that has no meaning.
    pub oldest_due_seconds: f64,
}
