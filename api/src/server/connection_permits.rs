//! How many connections there may be at once.

use std::sync::Arc;

use rustix::process::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::trouble::Trouble;

/// One for each connection.
pub struct Places(Arc<Semaphore>);

impl Places {
    /// `wanted` places, but no more than half of the files that the process may open: the others are for
    /// uploads, pictures, and the database. What it may open has been raised as far as the system lets it.
    pub fn new(wanted: usize) -> Self {
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let possible = usize::try_from(files / 2).unwrap_or(usize::MAX);
        if possible < wanted {
            tracing::warn!(
                wanted,
                possible,
                "fewer connections than max_connections: raise the hard limit of open files (ulimit -Hn, \
                 LimitNOFILE=) to twice as many, or lower max_connections"
            );
        }
        Self(Arc::new(Semaphore::new(wanted.min(possible).min(Semaphore::MAX_PERMITS))))
    }

    /// A place, unless all are taken. Who gets none is closed at once, rather than left to wait behind
    /// those who came to take places: a load balancer tries another node.
    pub fn take(&self) -> Option<OwnedSemaphorePermit> {
        static FULL: Trouble = Trouble::new("a connection is turned away");
        let place = self.0.clone().try_acquire_owned().ok();
        if place.is_none() {
            metrics::counter!("safelight_connections_refused_total").increment(1);
            FULL.note(&"there are max_connections already");
        }
        place
    }
}
