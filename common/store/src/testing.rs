//! A store that fails on demand, for tests. The one wrapper around the whole store: a new method needs one
//! line here and nowhere else in tests.

use std::{
    fmt::{self, Debug},
    io,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use safelight_domain::{
    ApiKey, Backfill, ContentHash, Image, ImageId, JobId, JobKind, JobNotice, Lane, Owner, Removal,
    SigningKey, Task, TaskId, Usage, WorkerId,
};
use uuid::Uuid;

use super::{
    Accepted, Access, AuditEntry, BackfillStep, Backfills, BlockingJob, Claim, ClaimedJob, Control,
    DatabaseClock, Deletion, DeletionRequest, Deletions, DynStore, Heartbeat, IdempotencyKey,
    ImageFilter, ImagePage, Installation, Installations, JobCount, Jobs, KeyState, KeyTicket,
    KnownApiKey, Lease, LiveSigningKey, LongestWaits, NewApiKey, NewBackfill, NewSigningKey,
    NewUpload, Outbox, OutboxBatch, Outcome, PageRequest, QueueCapacity, Reads, Reference,
    RegisteredWorker, RenditionRequest, Renewed, ReportLine, Requested, Schema, Settled,
    StoreError, TaskFilter, TaskPage, TaskVersion, Uploads, Workers,
};

/// One call of a method of the store.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The method's name.
    pub method: &'static str,
    /// Its arguments: a tuple.
    pub arguments: &'a (dyn Debug + Sync),
}

impl Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.method, self.arguments)
    }
}

/// Decides which calls fail. Both decisions may wait.
#[async_trait]
pub trait FaultPlan: Send + Sync + 'static {
    /// Called before the call. An error prevents it.
    async fn before(&self, call: Call<'_>) -> Result<(), StoreError>;

    /// Called after the call, with its answer. With an error the caller does not get that answer. By default
    /// answers are left as they are: most plans only prevent calls.
    async fn after(&self, call: Call<'_>, answer: &(dyn Debug + Sync)) -> Result<(), StoreError> {
        let _ = (call, answer);
        Ok(())
    }
}

/// A store whose calls fail as a plan says.
pub struct FaultyStore<P> {
    /// The store itself, which never fails by plan.
    pub inner: DynStore,
    /// The plan.
    pub plan: P,
}

/// The error of a database that cannot be reached.
pub fn unreachable() -> StoreError {
    StoreError::Unavailable(Arc::new(io::Error::from(io::ErrorKind::TimedOut)))
}

macro_rules! faulty {
    ($aspect:ident { $( fn $method:ident($( $argument:ident: $type:ty ),*) -> $answer:ty; )+ }) => {
        #[async_trait]
        impl<P: FaultPlan> $aspect for FaultyStore<P> {
            $(
                async fn $method(&self, $( $argument: $type ),*) -> Result<$answer, StoreError> {
                    let arguments = ($( &$argument, )*);
                    let call = Call { method: stringify!($method), arguments: &arguments };
                    self.plan.before(call).await?;
                    let answer = self.inner.$method($( $argument ),*).await;
                    self.plan.after(call, &answer).await?;
                    answer
                }
            )+
        }
    };
}

faulty! { Schema {
    fn migrate() -> ();
    fn check_schema() -> ();
    fn ping() -> ();
    fn durability_warnings() -> Vec<String>;
    fn lock_for_embedded_queue() -> bool;
    fn close() -> ();
} }

faulty! { Installations {
    fn installation() -> Installation;
    fn record_mark() -> ();
    fn advance_generation(at_least: u64) -> u64;
    fn keep_unknown(duration: Duration) -> ();
} }

faulty! { DatabaseClock {
    fn observe_clock(waits: &LongestWaits) -> Option<Duration>;
    fn bring_times_back(waits: &LongestWaits) -> u64;
} }

faulty! { Uploads {
    fn reserve_key(key: &IdempotencyKey, hold: Duration) -> KeyState;
    fn release_key(ticket: &KeyTicket) -> ();
    fn extend_key(ticket: &KeyTicket, hold: Duration) -> ();
    fn accept(upload: &NewUpload) -> Accepted;
    fn expire_keys(age: Duration, limit: u32) -> u64;
    fn request_rendition(request: &RenditionRequest) -> Requested;
} }

faulty! { Reads {
    fn task(id: TaskId) -> Option<Task>;
    fn task_versions(ids: &[TaskId]) -> Vec<TaskVersion>;
    fn list_tasks(filter: &TaskFilter, page: &PageRequest<TaskId>) -> TaskPage;
    fn image(id: ImageId) -> Option<Image>;
    fn list_images(owner: Option<&Owner>, page: &PageRequest<ImageId>) -> ImagePage;
    fn last_task_of_image(id: ImageId, kind: JobKind) -> Option<Task>;
    fn existing_images(ids: &[ImageId]) -> Vec<ImageId>;
} }

faulty! { Outbox {
    fn take_unpublished(capacity: &QueueCapacity, hold: Duration) -> OutboxBatch;
    fn mark_published(published: &[JobNotice]) -> ();
    fn release_taken(unpublished: &[JobNotice]) -> ();
    fn requeue_lost(kind: JobKind, lane: Lane, waited: Duration, limit: u32) -> u64;
    fn requeue_one(job: JobId, delay: Duration) -> bool;
    fn count_published(kind: JobKind, lane: Lane) -> u64;
    fn count_unpublished() -> u64;
} }

faulty! { Jobs {
    fn claim(notice: &JobNotice, redelivered: bool, worker: WorkerId, lease: Duration, understood: u32) -> Claim;
    fn renew(leases: &[Lease], lease: Duration) -> Renewed;
    fn settle(lease: &Lease, outcome: &Outcome) -> Settled;
    fn expired_leases(limit: u32) -> Vec<ClaimedJob>;
    fn take_over() -> u64;
    fn job_counts() -> Vec<JobCount>;
    fn count_queued(lane: Lane, at_most: u64) -> u64;
} }

faulty! { Control {
    fn cancel(id: TaskId) -> bool;
    fn retry(ids: &[TaskId]) -> Vec<TaskId>;
    fn prune_tasks(age: Duration, limit: u32) -> u64;
} }

faulty! { Deletions {
    fn delete_image(request: &DeletionRequest) -> Deletion;
    fn removal(task: TaskId) -> Option<Removal>;
    fn references(hashes: &[ContentHash]) -> Vec<Reference>;
    fn discarded(limit: u32, age: Duration) -> Vec<Image>;
    fn is_blob_wanted(sha256: &ContentHash) -> bool;
    fn forget_blob(sha256: &ContentHash) -> bool;
    fn mark_removed(id: ImageId) -> ();
} }

faulty! { Backfills {
    fn create_backfill(new: &NewBackfill) -> bool;
    fn lead_backfills(coordinator: WorkerId, hold: Duration, limit: u32) -> Vec<Backfill>;
    fn count_images(filter: &ImageFilter) -> u64;
    fn walk_images(filter: &ImageFilter, after: Option<ImageId>, limit: u32) -> Vec<Image>;
    fn images_with_blobs(owner: &Owner, hashes: &[ContentHash]) -> Vec<(ContentHash, ImageId)>;
    fn blocking_jobs(images: &[ImageId]) -> Vec<BlockingJob>;
    fn advance_backfill(step: &BackfillStep) -> bool;
    fn collect_results(id: TaskId, limit: u32) -> u64;
    fn retry_backfill(id: TaskId, limit: u32) -> u64;
    fn pause_backfill(id: TaskId, paused: bool) -> bool;
    fn backfill_report(id: TaskId, after: Option<Uuid>, limit: u32) -> Vec<ReportLine>;
} }

faulty! { Workers {
    fn heartbeat(beat: &Heartbeat) -> ();
    fn list_workers(limit: u32) -> Vec<RegisteredWorker>;
    fn forget_workers(silent: Duration) -> u64;
    fn leave(worker: WorkerId) -> ();
} }

faulty! { Access {
    fn create_api_key(new: &NewApiKey) -> ();
    fn api_keys(prefixes: &[String]) -> Vec<KnownApiKey>;
    fn has_api_keys() -> bool;
    fn list_api_keys(owner: Option<&Owner>, page: &PageRequest<Uuid>) -> Vec<ApiKey>;
    fn revoke_api_key(id: Uuid) -> Option<ApiKey>;
    fn note_key_use(id: Uuid) -> ();
    fn create_signing_key(new: &NewSigningKey, at_most: u32) -> bool;
    fn signing_key(id: &str) -> Option<LiveSigningKey>;
    fn newest_signing_key(owner: &Owner) -> Option<LiveSigningKey>;
    fn list_signing_keys(owner: Option<&Owner>) -> Vec<SigningKey>;
    fn revoke_signing_key(id: &str) -> Option<SigningKey>;
    fn usage(owner: &Owner) -> Usage;
    fn audit(entry: &AuditEntry) -> ();
    fn list_audit(page: &PageRequest<Uuid>) -> Vec<AuditEntry>;
} }
