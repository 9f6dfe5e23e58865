//! Back pressure: no more uploads while too much work is queued.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use safelight_domain::Lane;
use safelight_store::DynStore;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::problem::{Problem, ProblemCode};

/// How long a count is good. What this node accepts meanwhile is added to it.
const MAX_AGE: Duration = Duration::from_secs(1);

/// How long counting may hold up the one upload that does it.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many interactive jobs are queued over all nodes, as far as this one knows.
pub struct Backlog {
    limit: u64,
    queued: AtomicU64,
    counted_at: Mutex<Option<Instant>>,
}

impl Backlog {
    /// A backlog of at most `limit` jobs.
    pub fn new(limit: u64) -> Self {
        Self { limit, queued: AtomicU64::new(0), counted_at: Mutex::new(None) }
    }

    /// Refuses an upload while the backlog is full.
    pub async fn admit(&self, store: &DynStore) -> Result<(), Problem> {
        self.refresh(store).await;
        if self.queued.load(Ordering::Relaxed) < self.limit {
            return Ok(());
        }
        Err(Problem::new(
            ProblemCode::TooManyJobs,
            format!("{} jobs are queued already; the body was not read.", self.limit),
        ))
    }

    /// Adds jobs that were just accepted here.
    pub fn count(&self, jobs: usize) {
        self.queued.fetch_add(jobs as u64, Ordering::Relaxed);
    }

    /// Counts anew if the count is old. One upload does it, the others go by what is known.
    async fn refresh(&self, store: &DynStore) {
        let Ok(mut counted_at) = self.counted_at.try_lock() else { return };
        if counted_at.is_some_and(|at| at.elapsed() < MAX_AGE) {
            return;
        }
        // A database that is away is told by what the upload needs it for.
        if let Ok(Ok(queued)) =
            timeout(PATIENCE, store.count_queued(Lane::Interactive, self.limit)).await
        {
            self.queued.store(queued, Ordering::Relaxed);
        }
        *counted_at = Some(Instant::now());
    }
}
