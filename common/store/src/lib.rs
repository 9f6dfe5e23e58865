//! The truth: images, tasks, jobs, leases, the outbox. One trait, two shipped backends
//! (the crate `safelight-store-sql`), one contract suite (`tests/contract/store.rs`) that runs on both.
//!
//! Times that processes must agree on (due times, leases) are always the database's clock; callers
//! pass durations, never instants.

mod access;
pub mod backfills;
pub mod deletions;
pub mod ending;
mod error;
mod records;
mod registry;
pub mod requested;
pub mod taken;
pub mod tallied;
#[cfg(feature = "testing")]
pub mod testing;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use safelight_domain::{
    ApiKey, Backfill, ContentHash, Image, ImageId, JobId, JobKind, JobNotice, Lane, Owner, Removal,
    SigningKey, Task, TaskId, Usage, WorkerId,
};
use uuid::Uuid;

pub use access::{AuditEntry, KnownApiKey, LiveSigningKey, NewApiKey, NewSigningKey};
pub use backfills::{Advance, Child, ImageFilter, Imported, Item, NewBackfill, Obstacle};
pub use deletions::{Deletion, DeletionRequest, Reference};
pub use error::StoreError;
pub use records::{
    Accepted, Claim, ClaimedJob, IdempotencyKey, ImagePage, JobCount, KeyState, KeyTicket, Lease,
    NewUpload, OutboxBatch, Outcome, PageRequest, QueueCapacity, RenditionRequest, Renewed,
    Requested, Settled, TaskFilter, TaskPage, TaskVersion,
};
pub use registry::{Heartbeat, QueueSlots, RegisteredWorker, ServiceRun, WorkerStatus};

/// A shared handle to whichever backend the configuration names.
pub type DynStore = Arc<dyn Store>;

/// The state of everything, and the only place where it changes.
///
/// Every method is one atomic decision: it has happened wholly or not at all, and on `Ok` it is
/// durable. After an error the caller cannot know whether it happened; every method may be
/// called again.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    // --- schema and health ------------------------------------------------------------------

    /// Brings the schema up to this binary's version. Safe to call from many processes at once.
    /// Refuses a newer one with [`StoreError::SchemaNewer`].
    async fn migrate(&self) -> Result<(), StoreError>;

    /// Fails with [`StoreError::SchemaOlder`] or [`StoreError::SchemaNewer`] unless the schema is
    /// this binary's.
    async fn check_schema(&self) -> Result<(), StoreError>;

    /// Answers if the database can be worked with now: read, and where that is not the same, written.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Takes, for the life of this store, the right to be the one process that works on an
    /// in-process queue over this database. `false` if another process holds it; `true` again for
    /// the store that does. PostgreSQL gives it free when it loses this store's connection, as in
    /// a restart; calling again takes it again.
    async fn lock_for_embedded_queue(&self) -> Result<bool, StoreError>;

    // --- accepting uploads ------------------------------------------------------------------

    /// Reserves an idempotency key for one upload in flight. A reservation that was neither
    /// accepted nor released within `hold` (its process died) may be taken by another.
    async fn reserve_key(
        &self,
        key: &IdempotencyKey,
        hold: Duration,
    ) -> Result<KeyState, StoreError>;

    /// Gives a reservation back after an upload that was not accepted. No effect unless `ticket`
    /// still holds it.
    async fn release_key(&self, ticket: &KeyTicket) -> Result<(), StoreError>;

    /// The one transaction of an upload: image, task, its jobs (queued, due at once), their outbox
    /// rows, and the idempotency key if there is one. [`Accepted::KeyLost`], and no effect at all,
    /// if the upload carried a key whose reservation another has taken since. Accepting the same
    /// upload again, after an answer that was lost, changes nothing and is [`Accepted::Yes`]
    /// with the time of the first. [`Accepted::OverQuota`], and no effect at all, if the owner's quota has
    /// no room for it, however many uploads are accepted at the same time.
    async fn accept(&self, upload: &NewUpload) -> Result<Accepted, StoreError>;

    /// Holds a reservation for `hold` more from now, for an upload that takes long. No effect unless
    /// `ticket` still holds it.
    async fn extend_key(&self, ticket: &KeyTicket, hold: Duration) -> Result<(), StoreError>;

    /// Forgets idempotency keys older than `age`, but no reservation within its hold; at most
    /// `limit` at once. Returns how many.
    async fn expire_keys(&self, age: Duration, limit: u32) -> Result<u64, StoreError>;

    // --- asking for renditions --------------------------------------------------------------

    /// Queues one thumbnail job for renditions that an image lacks, unless there is one under way (other
    /// than a backfill's, which may take long) or the last one says that another would not help; however many ask at once, one is queued. The
    /// job is on the interactive lane, in a task of the kind `rendition` that has the owner of the
    /// image's upload.
    ///
    /// Asking again with the same ids, after an answer that was lost, queues nothing more.
    async fn request_rendition(&self, request: &RenditionRequest) -> Result<Requested, StoreError>;

    // --- reading ----------------------------------------------------------------------------

    /// A task with its jobs (in the order they were made) and its image.
    async fn task(&self, id: TaskId) -> Result<Option<Task>, StoreError>;

    /// The versions of the tasks that exist among `ids`, in any order: one query however many are
    /// watched (up to 10,000 and more).
    async fn task_versions(&self, ids: &[TaskId]) -> Result<Vec<TaskVersion>, StoreError>;

    /// Tasks, newest first, with the same content as [`Store::task`].
    async fn list_tasks(
        &self,
        filter: &TaskFilter,
        page: &PageRequest<TaskId>,
    ) -> Result<TaskPage, StoreError>;

    /// An image with its renditions and placeholder.
    async fn image(&self, id: ImageId) -> Result<Option<Image>, StoreError>;

    /// Images of one owner, or of all, newest first, without those that were discarded.
    async fn list_images(
        &self,
        owner: Option<&Owner>,
        page: &PageRequest<ImageId>,
    ) -> Result<ImagePage, StoreError>;

    /// The last task of this image, an upload or one for renditions, that has a job of this kind:
    /// for the reason why what such a job makes is not there.
    async fn last_task_of_image(
        &self,
        id: ImageId,
        kind: JobKind,
    ) -> Result<Option<Task>, StoreError>;

    /// Those of `ids` that are images. For telling orphaned staged bytes from accepted ones.
    async fn existing_images(&self, ids: &[ImageId]) -> Result<Vec<ImageId>, StoreError>;

    // --- the outbox -------------------------------------------------------------------------

    /// Takes due, unpublished jobs: of each queue as many as it has room for, from all that share the
    /// lane (see [`NewUpload`] and [`NewBackfill`]: owners, backfills) in turn, the oldest of each
    /// first. They are hidden from other takers for `hold`; a taker that dies loses nothing, they
    /// show again. Concurrent takers never get the same row.
    async fn take_unpublished(
        &self,
        room: &QueueCapacity,
        hold: Duration,
    ) -> Result<OutboxBatch, StoreError>;

    /// Removes published jobs from the outbox. Only after the broker has confirmed them.
    async fn mark_published(&self, published: &[JobNotice]) -> Result<(), StoreError>;

    /// Shows taken rows again at once, after a publish that failed.
    async fn return_unpublished(&self, unpublished: &[JobNotice]) -> Result<(), StoreError>;

    /// Puts queued, due jobs of one queue that have waited at least `waited` without being in the
    /// outbox back into it; at most `limit`, oldest first. Their message may be lost. Returns how
    /// many. A job that is put back counts as waiting anew from now.
    async fn unpublish(
        &self,
        kind: JobKind,
        lane: Lane,
        waited: Duration,
        limit: u32,
    ) -> Result<u64, StoreError>;

    /// Puts a job back into the outbox, due after `delay`, if it is queued and not in it: the broker
    /// has given up on its message. `false` if there was nothing to do.
    async fn republish(&self, job: JobId, delay: Duration) -> Result<bool, StoreError>;

    /// How many jobs of a queue are queued, due and not in the outbox: what the broker ought to
    /// hold for it.
    async fn count_published(&self, kind: JobKind, lane: Lane) -> Result<u64, StoreError>;

    // --- running jobs -----------------------------------------------------------------------

    /// Turns a message into a lease, if the job may run: it is queued and due; or running with a
    /// lease that ran out; or running while `redelivered` says that the broker took the message
    /// back from the worker of that very attempt (`notice.generation + 1`). Not if that worker is
    /// the one that asks: it lives, and the message is a second one of the job, or came again over
    /// a new connection.
    ///
    /// Counts the attempt **before** the work. Never gives out more than `max_attempts`. Anything
    /// else is [`Claim::Nothing`], and the message can be dropped.
    ///
    /// Gives out no job whose version is above `understood`, the newest that the worker knows how
    /// to run (see [`JOB_VERSION`](safelight_domain::JOB_VERSION)). One that it could have otherwise is
    /// [`Claim::Newer`]: no attempt is counted, and it needs another message for another worker.
    ///
    /// Calls that are made at the same time may be carried out together, as those of [`Store::settle`]
    /// may be; each has its own answer, and its effects, as if it had been alone.
    async fn claim(
        &self,
        notice: &JobNotice,
        redelivered: bool,
        worker: WorkerId,
        lease: Duration,
        understood: u32,
    ) -> Result<Claim, StoreError>;

    /// Extends leases in one statement. Says which are still held (also one that ran out, if nobody
    /// has taken it over); the rest were lost or cancelled and their work must stop.
    async fn renew(&self, leases: &[Lease], lease: Duration) -> Result<Renewed, StoreError>;

    /// Ends an attempt, with all its effects, in one transaction: job, task counts and status,
    /// image facts or renditions and placeholder, outbox row of a retry. [`Settled::Stale`], and no effect at all,
    /// unless the job is still running this very attempt.
    ///
    /// [`Outcome::Retry`] of a job's last attempt is recorded as a failure: the job could never be
    /// claimed again, and its task would hang.
    ///
    /// A task is `running` from the first claim until all its jobs are final; then `cancelled` if any
    /// was, else `failed` if any failed, else `succeeded`.
    async fn settle(&self, lease: &Lease, outcome: &Outcome) -> Result<Settled, StoreError>;

    /// Leases that have run out, oldest first, with the job's attempts; at most `limit`. The
    /// rescuer settles them as failures of those attempts.
    async fn expired_leases(&self, limit: u32) -> Result<Vec<ClaimedJob>, StoreError>;

    /// Ends what a dead process held: every lease runs out now, every reservation of an idempotency
    /// key that was not accepted is free, no worker is registered. Returns how many leases there were. Only for the one
    /// process that holds [`Store::lock_for_embedded_queue`], before it begins to work.
    async fn take_over(&self) -> Result<u64, StoreError>;

    // --- by hand ----------------------------------------------------------------------------

    /// Cancels all jobs of a task that have not ended, and with them the task, also if others have
    /// failed before. `false`, and no effect, if there is no such job, or the task is a deletion. A worker that is running one
    /// learns of it when it renews its lease; its settling is stale from now on.
    ///
    /// With an upload its image is discarded (see [`Store::discarded`]), and what else is under way
    /// for that image is cancelled. A backfill hands out nothing more, what it has handed out is
    /// cancelled as well, and it ends with the next [`Store::tally_backfill`].
    async fn cancel(&self, id: TaskId) -> Result<bool, StoreError>;

    /// Queues the failed jobs of those of `ids` that have failed, with all their attempts anew;
    /// answers which these are. Not those whose image was discarded, unless they are its deletion: their
    /// bytes are gone. Of a
    /// backfill, its failed images are handed out anew ([`Store::retry_backfill`]), if there are any.
    async fn retry(&self, ids: &[TaskId]) -> Result<Vec<TaskId>, StoreError>;

    // --- discarded images -------------------------------------------------------------------

    /// Images discarded at least `age` ago whose bytes are still to be removed, oldest first, with
    /// their renditions; at most `limit`. None that were deleted, which have a job, and only those that no worker can be writing for any more: all
    /// leases on their cancelled jobs have run out.
    async fn discarded(&self, limit: u32, age: Duration) -> Result<Vec<Image>, StoreError>;

    /// Whether an image that was not discarded has this blob.
    async fn is_blob_wanted(&self, sha256: &ContentHash) -> Result<bool, StoreError>;

    /// Decides that nobody needs an image's blob, and forgets the blob's renditions and
    /// placeholder. `false`, and no effect, if an image that was not discarded has the same blob.
    async fn forget_blob(&self, sha256: &ContentHash) -> Result<bool, StoreError>;

    /// Notes that all bytes of a discarded image are gone.
    async fn mark_removed(&self, id: ImageId) -> Result<(), StoreError>;

    // --- deletion ---------------------------------------------------------------------------

    /// Deletes an image. From then on it is discarded, whatever it was before; what is open of its
    /// tasks is cancelled; what its row says of the picture, the hash of its bytes excepted, is forgotten.
    /// A task with one job is queued on the interactive lane, with the owner of the image's upload. The
    /// job is due once no worker can be writing for the image any more (the leases on what was
    /// cancelled have run out), and [`DeletionRequest::after`] has gone by.
    ///
    /// Deleting it again changes nothing, and answers with the same task for as long as there is one.
    async fn delete_image(&self, request: &DeletionRequest) -> Result<Deletion, StoreError>;

    /// What the deletion `task` has to remove; `None` if it is none, or done.
    async fn removal(&self, task: TaskId) -> Result<Option<Removal>, StoreError>;

    /// Those of `hashes` that an image has whose bytes were not removed, discarded or not.
    async fn references(&self, hashes: &[ContentHash]) -> Result<Vec<Reference>, StoreError>;

    // --- backfills --------------------------------------------------------------------------

    /// Begins a backfill: its task, queued, and where it stands. Doing it again changes nothing. `false`, and
    /// no effect, if its id is that of another task, or of a backfill that was to do something else.
    async fn create_backfill(&self, new: &NewBackfill) -> Result<bool, StoreError>;

    /// Takes, or keeps, for `hold` the lead of backfills that have not ended and that no other foreman
    /// leads; answers with those it leads now, at most `limit`: those that are not paused before those that
    /// are, oldest first. A lead is renewed only when a third of its time is over, so that asking often costs no writes.
    async fn lead_backfills(
        &self,
        foreman: WorkerId,
        hold: Duration,
        limit: u32,
    ) -> Result<Vec<Backfill>, StoreError>;

    /// How many images a walk would look at.
    async fn count_images(&self, filter: &ImageFilter) -> Result<u64, StoreError>;

    /// The next images of a walk, in the order of their ids, with their renditions; at most `limit`.
    async fn walk_images(
        &self,
        filter: &ImageFilter,
        after: Option<ImageId>,
        limit: u32,
    ) -> Result<Vec<Image>, StoreError>;

    /// For each of `hashes` an image of the owner's that has these bytes and was not discarded, if any: the
    /// oldest one that is sound (stored, or being stored, and not failed for good), else the oldest.
    async fn images_with_blobs(
        &self,
        owner: &Owner,
        hashes: &[ContentHash],
    ) -> Result<Vec<(ContentHash, ImageId)>, StoreError>;

    /// The jobs of `images` that are under way or have failed for good, one for each image and kind: what is
    /// under way before what has failed. A failure counts no more once a later job of its kind has succeeded
    /// for that image; that of a verify job neither once the same bytes were stored anew.
    async fn obstacles(&self, images: &[ImageId]) -> Result<Vec<Obstacle>, StoreError>;

    /// Records one step of a walk, in one transaction: counts, report lines (of a dry run only those of
    /// [`Advance::done`]), and a task with its jobs (bulk lane, due at once) for each image to work on. `false`, and no effect, if the walk stands
    /// elsewhere by now, or was paused or cancelled: another foreman may have taken it over.
    ///
    /// A picture to take in whose bytes a sound image has by now (see [`Store::images_with_blobs`]) is
    /// skipped instead, as a duplicate: of steps that take in the same at once, one makes the image.
    async fn advance_backfill(&self, step: &Advance) -> Result<bool, StoreError>;

    /// Counts up to `limit` tasks of a backfill that have ended, writes their report lines, and forgets
    /// them unless they failed; then ends the backfill if it has walked to its end and nothing is
    /// under way. Answers how many were counted.
    async fn tally_backfill(&self, id: TaskId, limit: u32) -> Result<u64, StoreError>;

    /// Hands out again up to `limit` failed images of a backfill that is [`Backfill::retrying`]; if none
    /// are left, it no longer is. Answers how many.
    async fn retry_backfill(&self, id: TaskId, limit: u32) -> Result<u64, StoreError>;

    /// Makes a backfill hand out nothing, or go on. `false` if it has ended or was cancelled, or if it is to
    /// be paused and has nothing more to hand out.
    async fn pause_backfill(&self, id: TaskId, paused: bool) -> Result<bool, StoreError>;

    /// The report of a backfill by the ids of its lines, from after the one given; at most `limit`.
    /// What is still under way has no line yet.
    async fn backfill_report(
        &self,
        id: TaskId,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<Item>, StoreError>;

    /// Forgets tasks that succeeded or were cancelled, and backfills however they ended, longer than `age` ago,
    /// with their jobs and report lines, about `limit` rows at once; what failed of a backfill is a task of its
    /// own from then on. Returns how many; zero once there is nothing left to do.
    async fn prune_tasks(&self, age: Duration, limit: u32) -> Result<u64, StoreError>;

    // --- the registry of workers ------------------------------------------------------------

    /// Registers a worker, or notes that it lives and what it is at. Its uptime counts the first
    /// time only.
    async fn heartbeat(&self, beat: &Heartbeat) -> Result<(), StoreError>;

    /// The registered workers, the last heard of first; at most `limit`.
    async fn list_workers(&self, limit: u32) -> Result<Vec<RegisteredWorker>, StoreError>;

    /// Forgets workers that have not beaten for `silent`. Returns how many.
    async fn forget_workers(&self, silent: Duration) -> Result<u64, StoreError>;

    /// Forgets a worker that has drained.
    async fn leave(&self, worker: WorkerId) -> Result<(), StoreError>;

    // --- keys, usage, audit -----------------------------------------------------------------

    /// Records a key. Doing it again changes nothing.
    async fn create_api_key(&self, new: &NewApiKey) -> Result<(), StoreError>;

    /// The key whose secret begins like this.
    async fn api_key(&self, prefix: &str) -> Result<Option<KnownApiKey>, StoreError>;

    /// Whether there is any key, or ever was: revoked and expired ones count.
    async fn has_api_keys(&self) -> Result<bool, StoreError>;

    /// Keys of one owner, or of all, newest first.
    async fn list_api_keys(
        &self,
        owner: Option<&Owner>,
        page: &PageRequest<Uuid>,
    ) -> Result<Vec<ApiKey>, StoreError>;

    /// Ends a key at once; one that has ended stays as it is. `None` if there is none of this id.
    async fn revoke_api_key(&self, id: Uuid) -> Result<Option<ApiKey>, StoreError>;

    /// Notes that a key was used now.
    async fn note_key_use(&self, id: Uuid) -> Result<(), StoreError>;

    /// Records a key for signed URLs, unless its owner has `at_most` that are live. Doing it again
    /// changes nothing.
    async fn create_signing_key(
        &self,
        new: &NewSigningKey,
        at_most: u32,
    ) -> Result<bool, StoreError>;

    /// The live key of this id.
    async fn signing_key(&self, id: &str) -> Result<Option<LiveSigningKey>, StoreError>;

    /// The live key of an owner that was made last.
    async fn newest_signing_key(&self, owner: &Owner)
    -> Result<Option<LiveSigningKey>, StoreError>;

    /// Keys for signed URLs of one owner, or of all, newest first.
    async fn list_signing_keys(&self, owner: Option<&Owner>)
    -> Result<Vec<SigningKey>, StoreError>;

    /// Ends a key for signed URLs at once. `None` if there is none of this id.
    async fn revoke_signing_key(&self, id: &str) -> Result<Option<SigningKey>, StoreError>;

    /// What an owner has stored.
    async fn usage(&self, owner: &Owner) -> Result<Usage, StoreError>;

    /// Notes what an admin did.
    async fn audit(&self, entry: &AuditEntry) -> Result<(), StoreError>;

    /// What admins did, newest first.
    async fn list_audit(&self, page: &PageRequest<Uuid>) -> Result<Vec<AuditEntry>, StoreError>;

    // --- figures ----------------------------------------------------------------------------

    /// Jobs by kind, lane and status, final ones but `failed` left out, with the age of the oldest
    /// due one.
    async fn job_counts(&self) -> Result<Vec<JobCount>, StoreError>;

    /// How many jobs of a lane are queued, due or not; counts no further than `at_most`.
    async fn count_queued(&self, lane: Lane, at_most: u64) -> Result<u64, StoreError>;

    /// How many due jobs wait in the outbox.
    async fn count_unpublished(&self) -> Result<u64, StoreError>;
}
