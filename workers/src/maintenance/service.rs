//! What a background service is, and the loop that runs one.

use std::{error::Error, panic::AssertUnwindSafe, time::Duration};

use async_trait::async_trait;
use futures::FutureExt;
use safelight_telemetry::DependencyHealth;
use tokio_util::sync::CancellationToken;

use super::status::ServiceStatuses;

/// Why a run failed. Its text, without its sources, is shown to operators.
pub type ServiceError = Box<dyn Error + Send + Sync>;

/// Work that a process repeats until shutdown. Any number of processes may run it concurrently, and every run
/// may be cut off anywhere.
#[async_trait]
pub trait Service: Send + 'static {
    /// The name that operators see; unique and stable.
    fn name(&self) -> &'static str;

    /// What it does, as in "cannot `action`".
    fn action(&self) -> &'static str;

    /// How often it runs. A failed run is repeated sooner. `None`: whenever [`Service::wait`] returns.
    fn period(&self) -> Option<Duration>;

    /// Does its work once.
    async fn run(&mut self) -> Result<(), ServiceError>;

    /// Returns when the next run is due. Dropped at shutdown, so it must hold nothing that is lost then.
    async fn wait(&mut self) {
        tokio::time::sleep(self.period().unwrap_or_default()).await;
    }

    /// How long a run may continue after shutdown, together with [`Service::stop`]. Zero: it is cut off.
    fn grace(&self) -> Duration {
        Duration::ZERO
    }

    /// Last work at shutdown. The exception to the rule that no default succeeds silently: most services
    /// have none.
    async fn stop(&mut self) -> Result<(), ServiceError> {
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the service panicked")]
struct Panicked;

/// Runs a service until `shutdown`. Runs it again, with backoff, after an error or a panic.
pub async fn run_service(
    mut service: Box<dyn Service>,
    statuses: ServiceStatuses,
    shutdown: CancellationToken,
) {
    let (name, grace) = (service.name(), service.grace());
    let health = DependencyHealth::new(service.action());
    statuses.register(name);
    let work = async {
        repeat(&mut *service, &health, &statuses, &shutdown).await;
        if let Err(error) = contain_panic(name, service.stop()).await {
            health.report(&*error);
        }
    };
    let too_late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        biased;
        () = work => {}
        () = too_late => if !grace.is_zero() {
            tracing::warn!(service = name, "did not stop in time; other processes continue its work");
        },
    }
}

async fn repeat(
    service: &mut dyn Service,
    health: &DependencyHealth,
    statuses: &ServiceStatuses,
    shutdown: &CancellationToken,
) {
    let name = service.name();
    while !shutdown.is_cancelled() {
        let cycle = run_and_wait(service, health, statuses, shutdown);
        if let Err(error) = contain_panic(name, cycle).await {
            statuses.finished(name, Some(&error.to_string()));
            let delay = health.failed(&*error);
            let delay = service.period().map_or(delay, |period| delay.min(period));
            shutdown.run_until_cancelled(tokio::time::sleep(delay)).await;
        }
    }
}

/// One run, and if it succeeds the wait for the next.
async fn run_and_wait(
    service: &mut dyn Service,
    health: &DependencyHealth,
    statuses: &ServiceStatuses,
    shutdown: &CancellationToken,
) -> Result<(), ServiceError> {
    statuses.started(service.name());
    service.run().await?;
    statuses.finished(service.name(), None);
    health.recovered();
    shutdown.run_until_cancelled(service.wait()).await;
    Ok(())
}

/// The result of `work`, or [`Panicked`]. A service that panicked continues from the state that it has: its
/// runs may be cut off anywhere.
async fn contain_panic(
    service: &'static str,
    work: impl Future<Output = Result<(), ServiceError>>,
) -> Result<(), ServiceError> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(service, "a background service panicked");
        Err(Panicked.into())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::*;

    /// Fails, panics, succeeds and hangs, in this order.
    struct UnreliableService {
        runs: Arc<AtomicU32>,
        stopped: Arc<AtomicU32>,
    }

    #[async_trait]
    impl Service for UnreliableService {
        fn name(&self) -> &'static str {
            "unreliable"
        }

        fn action(&self) -> &'static str {
            "behave"
        }

        fn period(&self) -> Option<Duration> {
            Some(Duration::from_mins(1))
        }

        async fn run(&mut self) -> Result<(), ServiceError> {
            match self.runs.fetch_add(1, Ordering::SeqCst) {
                0 => Err("out of order".into()),
                1 => std::panic::resume_unwind(Box::new("a bug")),
                2 => Ok(()),
                _ => std::future::pending().await,
            }
        }

        fn grace(&self) -> Duration {
            Duration::from_secs(5)
        }

        async fn stop(&mut self) -> Result<(), ServiceError> {
            self.stopped.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn service_records_and_survives_errors_and_panics() {
        let runs = Arc::<AtomicU32>::default();
        let service = UnreliableService { runs: runs.clone(), stopped: Arc::default() };
        let (statuses, shutdown) = (ServiceStatuses::default(), CancellationToken::new());
        let running =
            tokio::spawn(run_service(Box::new(service), statuses.clone(), shutdown.clone()));
        let status = || statuses.snapshot().remove(0);
        let after = async |count: u32| {
            while runs.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            status()
        };
        let failed = after(1).await;
        assert_eq!(failed.last_error.as_deref(), Some("out of order"));
        assert!(failed.last_run_at.is_some() && failed.last_success_at.is_none());
        assert_eq!(after(2).await.last_error.as_deref(), Some("the service panicked"));
        let succeeded = after(4).await;
        assert!(succeeded.last_error.is_none() && succeeded.last_success_at.is_some());
        shutdown.cancel();
        running.await.expect("the service stops although a run hangs");
    }

    #[tokio::test(start_paused = true)]
    async fn idle_service_stops_immediately() {
        let (runs, stopped) = (Arc::new(AtomicU32::new(2)), Arc::<AtomicU32>::default());
        let service = UnreliableService { runs: runs.clone(), stopped: stopped.clone() };
        let (statuses, shutdown) = (ServiceStatuses::default(), CancellationToken::new());
        let running = tokio::spawn(run_service(Box::new(service), statuses, shutdown.clone()));
        while runs.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
        running.await.expect("no panic");
        assert_eq!((runs.load(Ordering::SeqCst), stopped.load(Ordering::SeqCst)), (3, 1));
    }

    /// Panics in its first wait and when it stops.
    struct PanickingService {
        runs: Arc<AtomicU32>,
    }

    #[async_trait]
    impl Service for PanickingService {
        fn name(&self) -> &'static str {
            "panicking"
        }

        fn action(&self) -> &'static str {
            "wait"
        }

        fn period(&self) -> Option<Duration> {
            None
        }

        async fn run(&mut self) -> Result<(), ServiceError> {
            self.runs.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        async fn wait(&mut self) {
            if self.runs.load(Ordering::SeqCst) == 1 {
                std::panic::resume_unwind(Box::new("a bug"));
            }
            std::future::pending::<()>().await;
        }

        fn grace(&self) -> Duration {
            Duration::from_secs(5)
        }

        async fn stop(&mut self) -> Result<(), ServiceError> {
            std::panic::resume_unwind(Box::new("a bug"))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn service_survives_panics_while_it_waits_and_stops() {
        let runs = Arc::<AtomicU32>::default();
        let service = PanickingService { runs: runs.clone() };
        let (statuses, shutdown) = (ServiceStatuses::default(), CancellationToken::new());
        let running = tokio::spawn(run_service(Box::new(service), statuses, shutdown.clone()));
        while runs.load(Ordering::SeqCst) < 2 {
            assert!(!running.is_finished(), "the service ended");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        shutdown.cancel();
        running.await.expect("the panic is contained");
    }
}
