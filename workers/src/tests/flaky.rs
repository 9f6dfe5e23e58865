//! A database that goes away and comes back.

use std::{
    collections::HashSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use safelight_common::{
    domain::{Image, ImageId, JobKind, Lane, Task, TaskId, WorkerId},
    store::{
        Accepted, Claim, ClaimedJob, Doorbell, DynStore, IdempotencyKey, ImagePage, JobCount,
        KeyState, KeyTicket, Lease, NewUpload, OutboxBatch, Outcome, PageRequest, Renewed, Settled,
        Store, StoreError, TaskFilter, TaskPage, TaskVersion,
    },
};

pub(crate) struct Flaky {
    pub inner: DynStore,
    /// While set, every call fails.
    pub away: AtomicBool,
    /// Calls that failed because of it.
    pub refused: AtomicU32,
    /// As many settles yet to come are done, but their answer is lost.
    pub answers_to_lose: AtomicU32,
    /// The methods that have returned at least once.
    pub called: Mutex<HashSet<&'static str>>,
}

impl Flaky {
    pub fn new(inner: DynStore) -> Self {
        Self {
            inner,
            away: AtomicBool::new(false),
            refused: AtomicU32::new(0),
            answers_to_lose: AtomicU32::new(0),
            called: Mutex::default(),
        }
    }

    fn gate(&self) -> Result<(), StoreError> {
        if self.away.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut));
        }
        Ok(())
    }
}

/// Implements the trait: each method passes the gate and goes on to the real store.
macro_rules! gated {
    ($( fn $name:ident($($argument:ident: $kind:ty),*) -> $answer:ty; )*) => {
        #[async_trait]
        impl Store for Flaky {
            $(
                async fn $name(&self, $($argument: $kind),*) -> Result<$answer, StoreError> {
                    self.gate()?;
                    let answer = self.inner.$name($($argument),*).await;
                    self.called.lock().expect("not poisoned").insert(stringify!($name));
                    answer
                }
            )*

            async fn settle(&self, lease: &Lease, end: &Outcome) -> Result<Settled, StoreError> {
                self.gate()?;
                let settled = self.inner.settle(lease, end).await?;
                let less = |left: u32| left.checked_sub(1);
                let (set, get) = (Ordering::SeqCst, Ordering::SeqCst);
                match self.answers_to_lose.fetch_update(set, get, less) {
                    Ok(_) => Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
                    Err(_) => Ok(settled),
                }
            }
        }
    };
}

gated! {
    fn migrate() -> ();
    fn check_schema() -> ();
    fn ping() -> ();
    fn lock_for_embedded_queue() -> bool;
    fn reserve_key(key: &IdempotencyKey, hold: Duration) -> KeyState;
    fn release_key(ticket: &KeyTicket) -> ();
    fn accept(upload: &NewUpload) -> Accepted;
    fn expire_keys(age: Duration, limit: u32) -> u64;
    fn task(id: TaskId) -> Option<Task>;
    fn task_versions(ids: &[TaskId]) -> Vec<TaskVersion>;
    fn list_tasks(filter: &TaskFilter, page: &PageRequest<TaskId>) -> TaskPage;
    fn image(id: ImageId) -> Option<Image>;
    fn list_images(page: &PageRequest<ImageId>) -> ImagePage;
    fn task_of_image(id: ImageId) -> Option<Task>;
    fn existing_images(ids: &[ImageId]) -> Vec<ImageId>;
    fn take_unpublished(limit: u32, hold: Duration) -> OutboxBatch;
    fn mark_published(published: &[Doorbell]) -> ();
    fn return_unpublished(unpublished: &[Doorbell]) -> ();
    fn unpublish(kind: JobKind, lane: Lane, waited: Duration, limit: u32) -> u64;
    fn count_published(kind: JobKind, lane: Lane) -> u64;
    fn claim(doorbell: &Doorbell, redelivered: bool, worker: WorkerId, lease: Duration) -> Claim;
    fn renew(leases: &[Lease], lease: Duration) -> Renewed;
    fn expired_leases(limit: u32) -> Vec<ClaimedJob>;
    fn take_over() -> u64;
    fn job_counts() -> Vec<JobCount>;
    fn count_unpublished() -> u64;
}
