//! Whether the dependencies of this node answer.

use std::{error::Error, sync::Arc, time::Duration};

use safelight_blobs::Blobs;
use safelight_queue::DynJobQueue;
use safelight_store::Schema;
use safelight_telemetry::{DependencyHealth, NoAnswer};
use tokio::time::timeout;

/// How long a dependency may take to answer before it counts as unavailable.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Checks the dependencies of this node.
pub struct Readiness {
    store: Checked<Arc<dyn Schema>>,
    blobs: Checked<Blobs>,
    /// `None` on a node that only delivers, which needs no broker.
    queue: Option<Checked<DynJobQueue>>,
}

struct Checked<T> {
    dependency: T,
    health: DependencyHealth,
}

/// Which dependencies answer.
#[derive(Debug, Clone, Copy)]
pub struct DependencyStates {
    /// The database does.
    pub database: bool,
    /// The blob store does.
    pub blobs: bool,
    /// The broker does; `None` where it is not needed.
    pub broker: Option<bool>,
}

impl Readiness {
    /// Of a node with these dependencies; `queue` is `None` if it only delivers.
    pub fn new(store: Arc<dyn Schema>, blobs: Blobs, queue: Option<DynJobQueue>) -> Self {
        let queue = queue.map(|queue| Checked::new(queue, "reach the broker"));
        Self {
            store: Checked::new(store, "reach the database"),
            blobs: Checked::new(blobs, "reach the blob store"),
            queue,
        }
    }

    /// Whether the node only delivers bytes.
    pub const fn only_delivers(&self) -> bool {
        self.queue.is_none()
    }

    /// Checks all dependencies concurrently.
    pub async fn check(&self) -> DependencyStates {
        let Self { store, blobs, queue } = self;
        let (database, blobs, broker) = tokio::join!(
            store.health.check(store.dependency.ping()),
            blobs.health.check(blobs.dependency.check()),
            async {
                match queue {
                    Some(queue) => Some(queue.health.check(queue.dependency.check()).await),
                    None => None,
                }
            },
        );
        DependencyStates { database, blobs, broker }
    }
}

impl<T> Checked<T> {
    fn new(dependency: T, what: &'static str) -> Self {
        Self { dependency, health: DependencyHealth::new(what) }
    }
}

trait Check {
    async fn check<E: Error + 'static>(&self, answer: impl Future<Output = Result<(), E>>) -> bool;
}

impl Check for DependencyHealth {
    /// Whether `answer` comes in time and is no error.
    async fn check<E: Error + 'static>(&self, answer: impl Future<Output = Result<(), E>>) -> bool {
        match timeout(CHECK_TIMEOUT, answer).await {
            Ok(Ok(())) => {
                self.recovered();
                return true;
            }
            Ok(Err(error)) => self.failed(&error),
            Err(_) => self.failed(&NoAnswer),
        };
        false
    }
}
