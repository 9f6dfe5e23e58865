//! The background tasks of a process: each is restarted if it panics, and all are drained at the end.

use safelight_domain::retry::Reconnect;
use safelight_services::Services;
use safelight_workers::{WorkerOptions, backfill, dead_letters, janitor, relay, rescuer, worker};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The background tasks that a process waits for before it ends.
#[derive(Default)]
pub struct BackgroundTasks(Vec<JoinHandle<()>>);

impl BackgroundTasks {
    /// Starts the worker with all the services of a working process.
    pub fn worker(
        services: &Services,
        options: WorkerOptions,
        shutdown: &CancellationToken,
    ) -> Self {
        let mut tasks = Self::default();
        tasks.start("worker", services, shutdown, move |services, token| {
            worker::run(services, options.clone(), token)
        });
        tasks.start_relay(services, shutdown);
        tasks.start("rescuer", services, shutdown, rescuer::run);
        tasks.start("backfill coordinator", services, shutdown, backfill::run);
        tasks.start("dead letters", services, shutdown, dead_letters::run);
        tasks.start("janitor", services, shutdown, janitor::run);
        tasks
    }

    /// Starts the outbox relay.
    pub fn start_relay(&mut self, services: &Services, shutdown: &CancellationToken) {
        self.start("outbox relay", services, shutdown, relay::run);
    }

    fn start<F>(
        &mut self,
        name: &'static str,
        services: &Services,
        shutdown: &CancellationToken,
        run: impl Fn(Services, CancellationToken) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let services = services.clone();
        self.0.push(supervise(name, shutdown, move |token| run(services.clone(), token)));
    }

    /// Waits until all of them have drained, then closes the queue.
    pub async fn finish(self, services: &Services) {
        for task in self.0 {
            // A supervisor neither panics nor is aborted.
            let _ = task.await;
        }
        services.queue.close().await;
        tracing::info!("drained");
    }
}

/// Thumbnail jobs at once: as configured, or one per core.
pub fn thumbnail_slots(configured: usize) -> usize {
    match configured {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        slots => slots,
    }
}

/// Runs a background task, and restarts it when it panics.
pub fn supervise<F>(
    name: &'static str,
    shutdown: &CancellationToken,
    start: impl Fn(CancellationToken) -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let mut reconnect = Reconnect::default();
        while let Err(error) = tokio::spawn(start(shutdown.clone())).await {
            tracing::error!(task = name, %error, "a background task panicked and is restarted");
            tokio::select! {
                () = tokio::time::sleep(reconnect.next_delay()) => {}
                () = shutdown.cancelled() => break,
            }
        }
    })
}
