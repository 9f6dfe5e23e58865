//! Reads that may hang, for example on an unreachable file server: how long they may make no progress, and
//! how many threads they may keep.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::timeout};

use super::error::SourceError;

/// How long a read may make no progress before it is abandoned.
const SILENCE: Duration = Duration::from_secs(30);

/// Threads that one import may keep. A read that hangs keeps its thread until the system releases it. If all
/// threads hang, the whole source counts as unavailable, and the import waits for it.
const THREADS: usize = 8;

/// How one import reads. Clones share its threads.
#[derive(Clone)]
pub(crate) struct Reader {
    threads: Arc<Semaphore>,
    silence: Duration,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new(THREADS, SILENCE)
    }
}

impl Reader {
    pub fn new(threads: usize, silence: Duration) -> Self {
        Self { threads: Arc::new(Semaphore::new(threads)), silence }
    }

    /// Runs `work`, which waits for a disk, on a separate thread, as long as it shows progress. Abandoned
    /// work gets an error when it shows progress again.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Progress) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let thread = timeout(self.silence, self.threads.clone().acquire_owned()).await;
        let Ok(Ok(thread)) = thread else {
            let why = "all earlier reads still hang";
            return Err(SourceError::Io(io::Error::new(io::ErrorKind::TimedOut, why)));
        };
        let progress = Progress::default();
        let watched = Watched(progress.clone());
        let mut done = tokio::task::spawn_blocking(move || {
            let _thread = thread;
            work(&progress)
        });
        loop {
            let before = watched.0.shown();
            match timeout(self.silence, &mut done).await {
                Ok(Ok(result)) => return result,
                Ok(Err(panic)) => return Err(SourceError::Io(io::Error::other(panic))),
                Err(_) if watched.0.shown() == before => {
                    return Err(SourceError::Silent(self.silence));
                }
                Err(_) => {}
            }
        }
    }

    /// Waits for a part of a network response.
    pub async fn wait<T>(
        &self,
        part: impl Future<Output = Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        timeout(self.silence, part).await.unwrap_or(Err(SourceError::Silent(self.silence)))
    }
}

/// The progress of a read.
#[derive(Clone, Default)]
pub(super) struct Progress(Arc<State>);

#[derive(Default)]
struct State {
    shown: AtomicU64,
    is_abandoned: AtomicBool,
}

impl Progress {
    /// Shows that the read makes progress. An error if the read was abandoned.
    pub fn show(&self) -> Result<(), SourceError> {
        self.0.shown.fetch_add(1, Ordering::Relaxed);
        if self.0.is_abandoned.load(Ordering::Relaxed) {
            return Err(SourceError::Io(io::ErrorKind::TimedOut.into()));
        }
        Ok(())
    }

    fn shown(&self) -> u64 {
        self.0.shown.load(Ordering::Relaxed)
    }
}

/// Marks a read as abandoned when its caller stops waiting, for any reason.
struct Watched(Progress);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.0.is_abandoned.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn hanging_read_times_out_and_keeps_its_thread() {
        let reader = Reader::new(1, TIMEOUT);
        let (release, released) = mpsc::channel::<()>();
        let (sender, is_abandoned) = mpsc::channel();
        let hanging = reader.run(move |progress| {
            let _ = released.recv();
            sender.send(progress.show().is_err()).map_err(io::Error::other).map_err(SourceError::Io)
        });
        assert!(matches!(hanging.await, Err(SourceError::Silent(_))));
        let next = reader.run(|_| Ok(())).await;
        assert!(matches!(next, Err(SourceError::Io(_))), "no thread is left: {next:?}");
        drop(release);
        assert!(is_abandoned.recv().expect("the read continues"), "its progress is rejected");
        while reader.run(|_| Ok(())).await.is_err() {}
    }

    #[tokio::test]
    async fn read_that_shows_progress_does_not_time_out() {
        let reader = Reader::new(1, Duration::from_millis(200));
        let done = reader.run(|progress| {
            for _ in 0..40 {
                std::thread::sleep(Duration::from_millis(10));
                progress.show()?;
            }
            Ok("done")
        });
        assert_eq!(done.await.expect("not abandoned"), "done");
    }

    #[tokio::test]
    async fn missing_part_times_out() {
        let never = std::future::pending::<Result<(), SourceError>>();
        assert!(matches!(Reader::new(1, TIMEOUT).wait(never).await, Err(SourceError::Silent(_))));
    }
}
