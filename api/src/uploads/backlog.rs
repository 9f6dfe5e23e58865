//! Backpressure: no more uploads while too much work is queued.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use safelight_domain::Lane;
use safelight_store::Jobs;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::http::problem::{Problem, ProblemCode};

/// How long a count is good. What this node accepts meanwhile is added to it.
const MAX_AGE: Duration = Duration::from_secs(1);

/// How long counting may delay the one upload that does it.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many interactive jobs are queued over all nodes, as far as this one knows.
pub struct Backlog {
    store: Arc<dyn Jobs>,
    limit: u64,
    queued: AtomicU64,
    counted_at: Mutex<Option<Instant>>,
}

impl Backlog {
    /// A backlog of at most `limit` jobs in `store`.
    pub fn new(store: Arc<dyn Jobs>, limit: u64) -> Self {
        Self { store, limit, queued: AtomicU64::new(0), counted_at: Mutex::new(None) }
    }

    /// Rejects an upload while the backlog is full.
    pub async fn admit(&self) -> Result<(), Problem> {
        self.refresh().await;
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

    /// Counts again if the count is old. One upload does it; the others use the last count.
    async fn refresh(&self) {
        let Ok(mut counted_at) = self.counted_at.try_lock() else { return };
        if counted_at.is_some_and(|at| at.elapsed() < MAX_AGE) {
            return;
        }
        // An unavailable database is reported by the later steps of the upload.
        if let Ok(Ok(queued)) =
            timeout(PATIENCE, self.store.count_queued(Lane::Interactive, self.limit)).await
        {
            self.queued.store(queued, Ordering::Relaxed);
        }
        *counted_at = Some(Instant::now());
    }
}
