//! The heartbeat: a running worker reports its identity and its work to the registry. No work depends on it,
//! so an unavailable database costs only heartbeats.

use std::time::{Duration, Instant};

use safelight_store::Heartbeat;
use safelight_telemetry::DependencyHealth;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::worker::Worker;
use crate::maintenance::status::ServiceStatuses;

/// How long a worker that has drained tries to leave the registry.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends heartbeats until `work` ends, with the status `draining` once `shutdown` is cancelled; then leaves
/// the registry.
pub(crate) async fn during(
    worker: &Worker,
    statuses: &ServiceStatuses,
    shutdown: &CancellationToken,
    work: impl Future<Output = ()>,
) {
    tokio::select! {
        biased;
        () = work => {}
        () = beat(worker, statuses, shutdown) => {}
    }
    let left = timeout(LEAVE_TIMEOUT, worker.store.leave(worker.id)).await;
    if !matches!(left, Ok(Ok(()))) {
        tracing::debug!(?left, "could not leave the registry: the worker will show as lost");
    }
}

/// Never returns.
async fn beat(worker: &Worker, statuses: &ServiceStatuses, shutdown: &CancellationToken) {
    let period = worker.settings.heartbeat_period;
    let began = Instant::now();
    let mut beat = introduction(worker, period);
    let health = DependencyHealth::new("send heartbeats");
    loop {
        beat.draining = shutdown.is_cancelled();
        beat.uptime = began.elapsed();
        beat.slots = worker.stats.snapshot();
        beat.services = statuses.snapshot();
        match worker.store.heartbeat(&beat).await {
            Ok(()) => health.recovered(),
            Err(error) => health.report(&error),
        }
        if beat.draining {
            tokio::time::sleep(period).await;
        } else {
            // A drain is reported immediately.
            let _ = timeout(period, shutdown.cancelled()).await;
        }
    }
}

fn introduction(worker: &Worker, period: Duration) -> Heartbeat {
    let options = &worker.options;
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
        services: Vec::new(),
        period,
        uptime: Duration::ZERO,
    }
}
