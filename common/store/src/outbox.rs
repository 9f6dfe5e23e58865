//! The outbox: jobs whose notice is still to be published to the queue.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::{JobId, JobKind, JobNotice, Lane};

use crate::StoreError;

/// Taking notices from the outbox, and putting them back.
#[async_trait]
pub trait Outbox: Send + Sync + 'static {
    /// Takes due, unpublished jobs: for each queue as many as it has capacity for. All owners and backfills
    /// that share a lane take turns, the oldest job of each first. The rows are hidden from other callers for
    /// `hold` and visible again afterwards, so a caller that dies loses nothing. Concurrent callers never get
    /// the same row.
    async fn take_unpublished(
        &self,
        capacity: &QueueCapacity,
        hold: Duration,
    ) -> Result<OutboxBatch, StoreError>;

    /// Removes published jobs from the outbox. Only after the queue has confirmed them.
    async fn mark_published(&self, published: &[JobNotice]) -> Result<(), StoreError>;

    /// Makes taken rows visible again immediately, after a failed publish.
    async fn release_taken(&self, unpublished: &[JobNotice]) -> Result<(), StoreError>;

    /// Puts up to `limit` jobs of one queue back into the outbox, oldest first: those that are queued and
    /// due, and have waited at least `waited` outside the outbox. Their message may be lost. Returns how
    /// many. The waiting time of such a job starts again now.
    async fn requeue_lost(
        &self,
        kind: JobKind,
        lane: Lane,
        waited: Duration,
        limit: u32,
    ) -> Result<u64, StoreError>;

    /// Puts a job back into the outbox, due after `delay`, if it is queued and not in the outbox: the queue
    /// has given up on its message. Returns `false` if there was nothing to do.
    async fn requeue_one(&self, job: JobId, delay: Duration) -> Result<bool, StoreError>;

    /// Counts the jobs of a queue that are queued, due and not in the outbox: what the queue should hold.
    async fn count_published(&self, kind: JobKind, lane: Lane) -> Result<u64, StoreError>;

    /// Counts the due jobs in the outbox.
    async fn count_unpublished(&self) -> Result<u64, StoreError>;
}

/// How many messages each queue has room for. A queue that is not listed has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueCapacity(pub Vec<(JobKind, Lane, u32)>);

impl QueueCapacity {
    /// The same capacity for every queue.
    pub fn each(messages: u32) -> Self {
        let queues =
            JobKind::ALL.iter().flat_map(|&kind| Lane::ALL.iter().map(move |&l| (kind, l)));
        Self(queues.map(|(kind, lane)| (kind, lane, messages)).collect())
    }

    /// The capacity of one queue.
    pub fn of(&self, kind: JobKind, lane: Lane) -> u32 {
        let found = self.0.iter().find(|(k, l, _)| (*k, *l) == (kind, lane));
        found.map_or(0, |(_, _, messages)| *messages)
    }
}

/// What [`Outbox::take_unpublished`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutboxBatch {
    /// To be published now.
    pub due: Vec<JobNotice>,
    /// How long until the next row comes due, those just taken included; zero if more may be due because a
    /// queue's capacity was used up; `None` if no row will. Rows that are due but found no capacity are not
    /// counted.
    pub next_in: Option<Duration>,
}

impl OutboxBatch {
    /// The batch of rows `due`, hidden for `hold`, while the next other row comes due in `next`.
    pub fn new(
        capacity: &QueueCapacity,
        due: Vec<JobNotice>,
        next: Option<Duration>,
        hold: Duration,
    ) -> Self {
        let is_full = |&(kind, lane, messages): &_| {
            let taken =
                due.iter().filter(|notice| (notice.kind, notice.lane) == (kind, lane)).count();
            messages > 0 && taken >= messages as usize
        };
        let next_in = if capacity.0.iter().any(is_full) {
            Some(Duration::ZERO)
        } else if due.is_empty() {
            next
        } else {
            // The rows just taken become visible again unless they are marked.
            Some(next.map_or(hold, |next| next.min(hold)))
        };
        Self { due, next_in }
    }
}
