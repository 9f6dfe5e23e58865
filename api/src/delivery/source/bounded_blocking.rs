//! Blocking work on this machine's disk, which may hang: on a bounded number of threads, with a time limit.

use std::{io, sync::Arc, time::Duration};

use safelight_blobs::blocking;
use tokio::{sync::Semaphore, time::timeout};

/// Threads that may wait for the disk concurrently: a disk that never answers blocks no more than these.
const AT_ONCE: usize = 32;

/// How long a disk may take for any operation. It is asked before the store, so not much longer than the store
/// would take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes per second of a disk that is too slow to be of use.
const SLOWEST: u64 = 16 << 20;

/// How long a disk may take over `bytes` bytes.
pub fn patience(bytes: u64) -> Duration {
    PATIENCE + Duration::from_millis(bytes * 1000 / SLOWEST)
}

/// Permits for the threads. Clones share them.
#[derive(Clone)]
pub struct BoundedBlocking(Arc<Semaphore>);

impl Default for BoundedBlocking {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl BoundedBlocking {
    /// Runs `work`, which blocks. An error if it takes longer than `limit`; the work itself continues.
    pub async fn run<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let done = async {
            let permit = self.0.clone().acquire_owned().await.map_err(io::Error::other)?;
            blocking(move || {
                let _permit = permit;
                work()
            })
            .await
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer");
        timeout(limit, done).await.unwrap_or_else(|_| Err(late()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn hanging_disk_blocks_a_bounded_number_of_threads() {
        let pool = BoundedBlocking::default();
        let (resume, resumed) = mpsc::channel::<()>();
        let resumed = Arc::new(std::sync::Mutex::new(resumed));
        for _ in 0..AT_ONCE {
            let resumed = resumed.clone();
            let hang = move || {
                drop(resumed.lock().map(|resumed| resumed.recv()));
                Ok(())
            };
            let late = pool.run(Duration::from_millis(1), hang).await.expect_err("it hangs");
            assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        }
        let soon = Duration::from_millis(20);
        let rejected = pool.run(soon, || -> io::Result<()> { panic!("it must not start") }).await;
        assert_eq!(rejected.expect_err("the pool is full").kind(), io::ErrorKind::TimedOut);
        drop(resume);
        pool.run(Duration::from_secs(20), || Ok(())).await.expect("it works again");
    }
}
