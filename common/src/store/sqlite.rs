//! SqliteStore.
use super::*;
#[allow(unused)]
use crate::domain::*;
use std::time::Duration;
/// SqliteStore.
pub struct SqliteStore;
impl SqliteStore {
    /// x
    pub async fn open(_: &std::path::Path) -> Result<Self, StoreError> {
        unimplemented!()
    }
}
#[async_trait]
#[allow(unused_variables)]
impl Store for SqliteStore {
    async fn migrate(&self) -> Result<(), StoreError> {
        unimplemented!()
    }
    async fn check_schema(&self) -> Result<(), StoreError> {
        unimplemented!()
    }
    async fn ping(&self) -> Result<(), StoreError> {
        unimplemented!()
    }
    async fn lock_for_embedded_queue(&self) -> Result<bool, StoreError> {
        unimplemented!()
    }
    async fn reserve_key(
        &self,
        key: &IdempotencyKey,
        hold: Duration,
    ) -> Result<KeyState, StoreError> {
        unimplemented!()
    }
    async fn release_key(&self, ticket: &KeyTicket) -> Result<(), StoreError> {
        unimplemented!()
    }
    async fn accept(&self, upload: &NewUpload) -> Result<Accepted, StoreError> {
        unimplemented!()
    }
    async fn expire_keys(&self, age: Duration, limit: u32) -> Result<u64, StoreError> {
        unimplemented!()
    }
    async fn task(&self, id: TaskId) -> Result<Option<Task>, StoreError> {
        unimplemented!()
    }
    async fn task_versions(&self, ids: &[TaskId]) -> Result<Vec<TaskVersion>, StoreError> {
        unimplemented!()
    }
    async fn list_tasks(
        &self,
        filter: &TaskFilter,
        page: &PageRequest<TaskId>,
    ) -> Result<TaskPage, StoreError> {
        unimplemented!()
    }
    async fn image(&self, id: ImageId) -> Result<Option<Image>, StoreError> {
        unimplemented!()
    }
    async fn list_images(&self, page: &PageRequest<ImageId>) -> Result<ImagePage, StoreError> {
        unimplemented!()
    }
    async fn task_of_image(&self, id: ImageId) -> Result<Option<Task>, StoreError> {
        unimplemented!()
    }
    async fn existing_images(&self, ids: &[ImageId]) -> Result<Vec<ImageId>, StoreError> {
        unimplemented!()
    }
    async fn take_unpublished(
        &self,
        limit: u32,
        hold: Duration,
    ) -> Result<OutboxBatch, StoreError> {
        unimplemented!()
    }
    async fn mark_published(&self, published: &[Doorbell]) -> Result<(), StoreError> {
        unimplemented!()
    }
    async fn return_unpublished(&self, unpublished: &[Doorbell]) -> Result<(), StoreError> {
        unimplemented!()
    }
    async fn unpublish(
        &self,
        kind: JobKind,
        lane: Lane,
        waited: Duration,
        limit: u32,
    ) -> Result<u64, StoreError> {
        unimplemented!()
    }
    async fn count_published(&self, kind: JobKind, lane: Lane) -> Result<u64, StoreError> {
        unimplemented!()
    }
    async fn claim(
        &self,
        doorbell: &Doorbell,
        redelivered: bool,
        worker: WorkerId,
        lease: Duration,
    ) -> Result<Claim, StoreError> {
        unimplemented!()
    }
    async fn renew(&self, leases: &[Lease], lease: Duration) -> Result<Renewed, StoreError> {
        unimplemented!()
    }
    async fn settle(&self, lease: &Lease, outcome: &Outcome) -> Result<Settled, StoreError> {
        unimplemented!()
    }
    async fn expired_leases(&self, limit: u32) -> Result<Vec<ClaimedJob>, StoreError> {
        unimplemented!()
    }
    async fn job_counts(&self) -> Result<Vec<JobCount>, StoreError> {
        unimplemented!()
    }
    async fn count_unpublished(&self) -> Result<u64, StoreError> {
        unimplemented!()
    }
}
