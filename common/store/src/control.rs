//! Manual changes of tasks.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::TaskId;

use crate::StoreError;

/// Cancelling, retrying and pruning tasks.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    /// Cancels all open jobs of a task, and with them the task, also if other jobs have failed before.
    /// Returns `false`, without any effect, if no job is open or the task is a deletion. A worker that runs
    /// such a job detects this when it renews its lease; from now on its settle is stale.
    ///
    /// Cancelling an upload discards its image (see [`Deletions::discarded`](crate::Deletions::discarded)) and
    /// cancels all other open jobs of that image. A cancelled backfill creates no more children, its open
    /// children are cancelled as well, and it ends with the next
    /// [`Backfills::collect_results`](crate::Backfills::collect_results).
    async fn cancel(&self, id: TaskId) -> Result<bool, StoreError>;

    /// Queues the failed jobs of those of `ids` that have failed, with all attempts available again, and
    /// returns these tasks. Tasks of discarded images are left out, unless they are the deletion: their bytes
    /// are gone. Of a backfill, the failed images are queued again
    /// ([`Backfills::retry_backfill`](crate::Backfills::retry_backfill)), if there are any.
    async fn retry(&self, ids: &[TaskId]) -> Result<Vec<TaskId>, StoreError>;

    /// Removes tasks that succeeded or were cancelled, and ended backfills, longer than `age` ago, with their
    /// jobs and report lines, about `limit` rows per call. The failed children of a removed backfill become
    /// independent tasks. Returns how many rows were removed: zero when nothing is left to do.
    async fn prune_tasks(&self, age: Duration, limit: u32) -> Result<u64, StoreError>;
}
