//! The background tasks of a process: each continues after a panic, and all are drained at the end.

use safelight_domain::retry::Reconnect;
use safelight_workers::{Service, ServiceStatuses, WorkerOptions, consumer, run_service};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::services::Services;

/// The background tasks that a process waits for before it ends.
#[derive(Default)]
pub struct BackgroundTasks {
    tasks: Vec<JoinHandle<()>>,
    statuses: ServiceStatuses,
}

impl BackgroundTasks {
    /// Starts the worker with all the services of a working process.
    pub fn worker(
        services: &Services,
        options: WorkerOptions,
        shutdown: &CancellationToken,
    ) -> Self {
        let mut tasks = Self::default();
        let parts = services.for_workers();
        for service in safelight_workers::services(&parts) {
            tasks.start(service, shutdown);
        }
        let statuses = tasks.statuses.clone();
        tasks.tasks.push(supervise("worker", shutdown, move |token| {
            let (parts, options, statuses) = (parts.clone(), options.clone(), statuses.clone());
            async move { consumer::run(&parts, options, statuses, token).await }
        }));
        tasks
    }

    /// Starts the outbox relay of a process without a worker. Its status is recorded for nobody: only a
    /// worker's heartbeat shows the services of its process, and errors of this relay are in its log.
    pub fn start_relay(&mut self, services: &Services, shutdown: &CancellationToken) {
        self.start(safelight_workers::outbox_relay(&services.for_workers()), shutdown);
    }

    fn start(&mut self, service: Box<dyn Service>, shutdown: &CancellationToken) {
        let running = run_service(service, self.statuses.clone(), shutdown.clone());
        self.tasks.push(tokio::spawn(running));
    }

    /// Waits until all of them have drained, then closes the queue and the database.
    pub async fn finish(self, services: &Services) {
        for task in self.tasks {
            // Neither a supervisor nor a service's loop panics or is aborted.
            let _ = task.await;
        }
        services.close().await;
        tracing::info!("drained");
    }
}

/// See [`WorkerOptions::concurrency`]: as configured, or one per core.
pub fn concurrency(configured: usize) -> usize {
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
            if error.is_cancelled() {
                // The runtime is shutting down.
                break;
            }
            tracing::error!(task = name, %error, "a background task panicked and is restarted");
            tokio::select! {
                () = tokio::time::sleep(reconnect.next_delay()) => {}
                () = shutdown.cancelled() => break,
            }
        }
    })
}
