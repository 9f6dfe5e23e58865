//! The registered workers.

use safelight_store::{RegisteredWorker, StoreError, Workers};

/// Workers that are read at most.
const MAX_WORKERS: u32 = 10_000;

/// All workers, the one with the latest heartbeat first.
pub async fn list_workers(store: &dyn Workers) -> Result<Vec<RegisteredWorker>, StoreError> {
    store.list_workers(MAX_WORKERS).await
}
