//! Running jobs: claims, leases and settles.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::{
    BackfillSpec, Failure, Image, ImageFacts, JobId, JobKind, JobNotice, Lane, Placeholder,
    Rendition, Status, TaskId, WorkerId,
};

use crate::StoreError;

/// Claiming jobs, keeping their leases, and settling their attempts.
#[async_trait]
pub trait Jobs: Send + Sync + 'static {
    /// Turns a message into a lease, if the job may run: it is queued and due; or its lease ran out; or it is
    /// running, and `redelivered` shows that the queue took the message back from the worker of exactly that
    /// attempt (`notice.generation + 1`). In the last case not if the caller is that worker: it lives, and
    /// the message is a duplicate or was delivered again over a new connection.
    ///
    /// Counts the attempt **before** the work. Never starts more than `max_attempts`. Everything else is
    /// [`Claim::Nothing`], and the message can be dropped.
    ///
    /// Starts no job whose version is above `understood`, the newest that the worker can run (see
    /// [`JOB_VERSION`](safelight_domain::JOB_VERSION)). If that alone prevents the claim, the result is
    /// [`Claim::Newer`]: no attempt is counted, and the job needs another message for another worker.
    ///
    /// A backend may carry out concurrent claims together, and also settles; each call has its own answer and
    /// its own effects.
    async fn claim(
        &self,
        notice: &JobNotice,
        redelivered: bool,
        worker: WorkerId,
        lease: Duration,
        understood: u32,
    ) -> Result<Claim, StoreError>;

    /// Extends leases in one statement. Returns those that are still held (also one that ran out, if no other
    /// worker has taken it over); the others were lost or cancelled, and their work must stop.
    async fn renew(&self, leases: &[Lease], lease: Duration) -> Result<Renewed, StoreError>;

    /// Ends an attempt with all its effects in one transaction: job, task counts and status, image facts,
    /// renditions and placeholder, outbox row of a retry. [`Settled::Stale`], without any effect, unless the
    /// job is still running this attempt.
    ///
    /// [`Outcome::Retry`] of a job's last attempt is recorded as a failure: otherwise the job could never be
    /// claimed again, and its task would never end.
    ///
    /// A task is `running` from the first claim until all its jobs are final; then `cancelled` if any was
    /// cancelled, else `failed` if any failed, else `succeeded`.
    async fn settle(&self, lease: &Lease, outcome: &Outcome) -> Result<Settled, StoreError>;

    /// Up to `limit` leases that have run out, oldest first, with the job's attempts. The rescuer settles
    /// them as failures of those attempts.
    async fn expired_leases(&self, limit: u32) -> Result<Vec<ClaimedJob>, StoreError>;

    /// Releases everything that a dead process held: every lease runs out now, every reservation of an
    /// idempotency key that was not accepted is free, no worker is registered. Returns how many leases there
    /// were. Only for the one process that holds
    /// [`Schema::lock_for_embedded_queue`](crate::Schema::lock_for_embedded_queue), before it starts to work.
    async fn take_over(&self) -> Result<u64, StoreError>;

    /// Counts jobs by kind, lane and status (of final ones only `failed`), with the age of the oldest due
    /// job.
    async fn job_counts(&self) -> Result<Vec<JobCount>, StoreError>;

    /// Counts the queued jobs of a lane, due or not; stops at `at_most`.
    async fn count_queued(&self, lane: Lane, at_most: u64) -> Result<u64, StoreError>;
}

/// The right to run one attempt of one job. It fences every effect: see [`Jobs::settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The job.
    pub job: JobId,
    /// The fencing token: the number of the attempt over all claims, released attempts included. Grows with
    /// each claim and is never issued twice.
    pub fence: u32,
}

/// The result of [`Jobs::claim`].
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
    /// Attempts started and not released, this one included.
    pub attempt: u32,
    /// The limit of attempts.
    pub max_attempts: u32,
    /// The image to work on, with the renditions that its blob already has.
    pub image: Image,
    /// The request of the backfill that created its task; `None` for all other tasks.
    pub backfill: Option<BackfillSpec>,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It did its work, with these effects to record.
    Succeeded(Vec<Effect>),
    /// It failed; the next attempt, if one is left, is due after the delay.
    Retry(Failure, Duration),
    /// It failed for good.
    Failed(Failure),
    /// It could not do its work because of an outage: queued again with its failure, due after the delay, and the
    /// attempt does not count.
    Postponed(Failure, Duration),
    /// It was released unfinished: queued again, due immediately, and the attempt does not count.
    Released,
}

/// A change that a successful attempt leaves in the database.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// The bytes are stored as a blob, and these are the image's facts.
    StoredBlob(ImageFacts),
    /// The image's blob has these renditions. They replace records with the same preset, fingerprint and
    /// format: equal uploads share them.
    UpsertRenditions(Vec<Rendition>),
    /// The image's blob has this placeholder.
    Placeholder(Placeholder),
    /// These renditions of the image's blob cannot be made again: their records are removed.
    ForgetRenditions(Vec<Rendition>),
    /// A note for people on the job.
    Note(String),
    /// Everything stored for this image alone is removed. Removes the remaining data of its row, and the data
    /// for the job.
    ForgetImage {
        /// The number of caching proxies that confirmed.
        proxies: u32,
    },
}

/// The result of [`Jobs::settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// Recorded.
    Applied,
    /// The lease was no longer held; nothing was recorded.
    Stale,
}

/// The result of [`Jobs::renew`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renewed {
    /// Leases that are still held; all others are lost.
    pub held: Vec<Lease>,
}

/// How many jobs of one kind, lane and status there are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct JobCount {
    /// The kind.
    pub kind: JobKind,
    /// The lane.
    pub lane: Lane,
    /// The status.
    pub status: Status,
    /// The number of jobs.
    pub count: u64,
    /// How many of them are queued and due.
    pub due: u64,
    /// Seconds since the oldest of them came due; zero where that has no meaning.
    pub oldest_due_seconds: f64,
}
