//! Whether the dependencies of this node answer.

use std::{
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use safelight_blobs::{BlobError, Blobs};
use safelight_queue::DynJobQueue;
use safelight_store::Schema;
use safelight_telemetry::{DependencyHealth, NoAnswer};
use tokio::time::{Instant, timeout};

/// How long a dependency may take to answer before it counts as unavailable.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a successful write to the blob store proves that uploads can be stored. Probes come every second or so,
/// and a write costs more than a read.
const WRITTEN_FOR: Duration = Duration::from_secs(5);

/// A node without space for an upload of this size is not ready, although smaller ones may still fit.
const UPLOAD_BYTES: u64 = 1 << 20;

/// Checks the dependencies of this node.
pub struct Readiness {
    store: Checked<Arc<dyn Schema>>,
    blobs: Checked<Blobs>,
    /// `None` on a node that only delivers, which needs no broker.
    queue: Option<Checked<DynJobQueue>>,
    /// When the blob store was last written to.
    written_at: Mutex<Option<Instant>>,
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
            written_at: Mutex::default(),
        }
    }

    /// Whether the node only delivers bytes.
    pub const fn only_delivers(&self) -> bool {
        self.queue.is_none()
    }

    /// Checks all dependencies concurrently.
    pub async fn check(&self) -> DependencyStates {
        let Self { store, blobs, queue, .. } = self;
        let (database, blobs, broker) = tokio::join!(
            store.health.check(store.dependency.ping()),
            blobs.health.check(async {
                self.check_blobs(&blobs.dependency).await?;
                blobs.dependency.check_space(UPLOAD_BYTES).await
            }),
            async {
                match queue {
                    Some(queue) => Some(queue.health.check(queue.dependency.check()).await),
                    None => None,
                }
            },
        );
        DependencyStates { database, blobs, broker }
    }

    /// Whether the store is this installation's, and, unless the node only delivers, can be written to.
    async fn check_blobs(&self, blobs: &Blobs) -> Result<(), BlobError> {
        let is_proven = || self.written_at().is_some_and(|at| at.elapsed() < WRITTEN_FOR);
        if self.only_delivers() || is_proven() {
            return blobs.check().await;
        }
        blobs.check_writable().await?;
        *self.written_at() = Some(Instant::now());
        Ok(())
    }

    fn written_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.written_at.lock().unwrap_or_else(PoisonError::into_inner)
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
