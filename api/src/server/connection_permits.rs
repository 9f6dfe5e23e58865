//! How many connections there may be concurrently.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use rustix::process::{Resource, getrlimit};
use safelight_telemetry::DependencyHealth;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::activity::OpenConnections;

/// How long it takes at most to close a connection that gives way.
const CLOSING: Duration = Duration::from_millis(100);

/// One permit for each connection.
pub struct ConnectionPermits(Arc<Semaphore>);

/// There are as many connections as `max_connections` allows.
#[derive(Debug, thiserror::Error)]
#[error("there are max_connections already")]
struct AllTaken;

impl ConnectionPermits {
    /// `wanted` permits, but no more than half of the files that the process may open: the others are for
    /// uploads, images, and the database. The limit has been raised as far as the system allows.
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

    /// A permit. If all are taken, `open` connections that wait for their clients give way. If there are none, the new
    /// connection is closed rather than left waiting: a load balancer tries another node.
    pub async fn acquire(&self, open: &OpenConnections) -> Option<OwnedSemaphorePermit> {
        static LIMIT: LazyLock<DependencyHealth> =
            LazyLock::new(|| DependencyHealth::new("take another connection"));
        let mut permit = self.0.clone().try_acquire_owned().ok();
        if permit.is_none() && open.make_room() {
            let next = timeout(CLOSING, self.0.clone().acquire_owned()).await;
            permit = next.ok().and_then(Result::ok);
        }
        if permit.is_none() {
            metrics::counter!("safelight_connections_refused_total").increment(1);
            LIMIT.failed(&AllTaken);
        }
        permit
    }
}
