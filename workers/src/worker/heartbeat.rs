//! The heartbeat: while a worker lives it says in the registry who it is and what it is at. Nobody's
//! work depends on it, so a database that is away costs beats and nothing else.

use std::time::{Duration, Instant};

use safelight_services::Services;
use safelight_store::{Heartbeat, StoreError};
use safelight_telemetry::DependencyHealth;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Worker, WorkerOptions};

/// How long a worker that has drained tries to take its leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// After so long without a beat a worker is forgotten.
const FORGET_AFTER: Duration = Duration::from_mins(10);

/// Beats while `work` goes on, as draining once `shutdown` is cancelled; then takes its leave.
pub(crate) async fn during(
    worker: &Worker,
    options: &WorkerOptions,
    shutdown: &CancellationToken,
    work: impl Future<Output = ()>,
) {
    tokio::select! {
        biased;
        () = work => {}
        () = beat(worker, options, shutdown) => {}
    }
    let left = timeout(LEAVE_TIMEOUT, worker.services.store.leave(worker.id)).await;
    if !matches!(left, Ok(Ok(()))) {
        tracing::debug!(?left, "could not leave the registry: the worker will show as lost");
    }
}

/// Never ends.
async fn beat(worker: &Worker, options: &WorkerOptions, shutdown: &CancellationToken) {
    let period = Duration::from_millis(worker.services.config.heartbeat_ms);
    let began = Instant::now();
    let mut beat = introduction(worker, options, period);
    let trouble = DependencyHealth::new("tell the registry that this worker lives");
    loop {
        beat.draining = shutdown.is_cancelled();
        beat.uptime = began.elapsed();
        beat.slots = worker.tally.snapshot();
        match worker.services.store.heartbeat(&beat).await {
            Ok(()) => trouble.over(),
            // Not more often than otherwise, however short the backoff.
            Err(error) => drop(trouble.failed(&error)),
        }
        if beat.draining {
            tokio::time::sleep(period).await;
        } else {
            // That it drains is said at once.
            let _ = timeout(period, shutdown.cancelled()).await;
        }
    }
}

fn introduction(worker: &Worker, options: &WorkerOptions, period: Duration) -> Heartbeat {
    let host = nix::unistd::gethostname().unwrap_or_default();
    Heartbeat {
        id: worker.id,
        host: host.to_string_lossy().into_owned(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        draining: false,
        kinds: options.kinds.iter().map(ToString::to_string).collect(),
        lanes: options.lanes.iter().map(ToString::to_string).collect(),
        concurrency: u32::try_from(options.concurrency).unwrap_or(u32::MAX),
        slots: Vec::new(),
        period,
        uptime: Duration::ZERO,
    }
}

/// Forgets workers that have been silent for long: they were killed, or their machine is gone.
pub(crate) async fn forget_silent(services: Services) -> Result<(), StoreError> {
    let forgotten = services.store.forget_workers(FORGET_AFTER).await?;
    if forgotten > 0 {
        tracing::info!(workers = forgotten, "forgot workers that have been silent for long");
    }
    Ok(())
}
