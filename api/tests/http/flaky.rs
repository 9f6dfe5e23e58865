//! The real store, failing on demand.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
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

/// What goes wrong.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Fault {
    /// Nothing.
    None,
    /// No call is answered.
    Away,
    /// The next upload is recorded, but the connection breaks before the answer.
    AcceptUnheard,
    /// Uploads are not recorded, and the database says so.
    AcceptRefused,
}

/// A store with a [`Fault`], held as a number so that tests can change it.
pub struct Flaky {
    pub inner: DynStore,
    pub fault: Arc<AtomicU8>,
}

impl Flaky {
    fn has(&self, fault: Fault) -> bool {
        self.fault.load(Ordering::SeqCst) == fault as u8
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.has(Fault::Away) { Err(away()) } else { Ok(()) }
    }
}

fn away() -> StoreError {
    StoreError::Unavailable(sqlx::Error::PoolTimedOut)
}

/// Methods that only pass their call on.
macro_rules! pass_on {
    ($( $name:ident ( $( $arg:ident : $type:ty ),* ) -> $out:ty; )+) => {
        #[async_trait]
        impl Store for Flaky {
            async fn accept(&self, upload: &NewUpload) -> Result<Accepted, StoreError> {
                self.check()?;
                if self.has(Fault::AcceptRefused) {
                    return Err(StoreError::Corrupt("refused".to_owned()));
                }
                let accepted = self.inner.accept(upload).await?;
                if self.has(Fault::AcceptUnheard) {
                    self.fault.store(Fault::None as u8, Ordering::SeqCst);
                    return Err(away());
                }
                Ok(accepted)
            }

            $(
                async fn $name(&self, $( $arg: $type ),*) -> Result<$out, StoreError> {
                    self.check()?;
                    self.inner.$name($( $arg ),*).await
                }
            )+
        }
    };
}

pass_on! {
    migrate() -> ();
    check_schema() -> ();
    ping() -> ();
    lock_for_embedded_queue() -> bool;
    reserve_key(key: &IdempotencyKey, hold: Duration) -> KeyState;
    release_key(ticket: &KeyTicket) -> ();
    expire_keys(age: Duration, limit: u32) -> u64;
    task(id: TaskId) -> Option<Task>;
    task_versions(ids: &[TaskId]) -> Vec<TaskVersion>;
    list_tasks(filter: &TaskFilter, page: &PageRequest<TaskId>) -> TaskPage;
    image(id: ImageId) -> Option<Image>;
    list_images(page: &PageRequest<ImageId>) -> ImagePage;
    task_of_image(id: ImageId) -> Option<Task>;
    existing_images(ids: &[ImageId]) -> Vec<ImageId>;
    take_unpublished(limit: u32, hold: Duration) -> OutboxBatch;
    mark_published(published: &[Doorbell]) -> ();
    return_unpublished(unpublished: &[Doorbell]) -> ();
    unpublish(kind: JobKind, lane: Lane, waited: Duration, limit: u32) -> u64;
    count_published(kind: JobKind, lane: Lane) -> u64;
    claim(doorbell: &Doorbell, redelivered: bool, worker: WorkerId, lease: Duration) -> Claim;
    renew(leases: &[Lease], lease: Duration) -> Renewed;
    settle(lease: &Lease, outcome: &Outcome) -> Settled;
    expired_leases(limit: u32) -> Vec<ClaimedJob>;
    take_over() -> u64;
    job_counts() -> Vec<JobCount>;
    count_unpublished() -> u64;
}
