//! The runtime of a process, its logs and metrics, and its signals.

use std::time::Duration;

use safelight_config::Config;
use safelight_telemetry::PrometheusHandle;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::background::supervise;
use crate::error::CommandError;

/// How often recorded samples are folded into their histograms.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// How long blocking threads may delay the end of the process. They lose nothing: only what was committed
/// counts.
const BLOCKING_GRACE: Duration = Duration::from_millis(100);

/// The exit code after a second signal: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

/// Runs a command to its end.
pub fn block_on(
    command: impl Future<Output = Result<(), CommandError>>,
) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::failed(format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(async {
        let result = command.await;
        safelight_telemetry::traces::flush().await;
        result
    });
    runtime.shutdown_timeout(BLOCKING_GRACE);
    result
}

/// Starts logs and traces as configured, and raises the limit of open files: each client takes one. `role` is
/// the subcommand.
pub fn init(config: &Config, role: &'static str) -> Result<(), CommandError> {
    safelight_telemetry::init(config, role).map_err(|error| {
        let wrong = CommandError::usage(&error);
        if error.starts_with("log:") {
            return wrong.hint("log is a level (info), or levels by target (info,sqlx=warn)");
        }
        wrong.hint("see otlp_endpoint in `safelight config --defaults`, and the OTEL_* variables")
    })?;
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    Ok(())
}

/// Starts the collection of metrics; the handle renders them. To be called before anything records some.
pub fn init_metrics(shutdown: &CancellationToken) -> Result<PrometheusHandle, CommandError> {
    let metrics = safelight_telemetry::init_metrics().map_err(CommandError::failed)?;
    let upkeep = metrics.clone();
    supervise("metrics upkeep", shutdown, move |token| run_upkeep(upkeep.clone(), token));
    Ok(metrics)
}

/// Folds recorded samples into their histograms, which otherwise grow until the next scrape.
async fn run_upkeep(metrics: PrometheusHandle, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(METRICS_UPKEEP);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        metrics.run_upkeep();
    }
}

/// A token that the first SIGTERM or Ctrl-C cancels. The second ends the process immediately, which loses
/// nothing: leases expire, and unsettled messages are delivered again.
pub fn shutdown_on_signal() -> Result<CancellationToken, CommandError> {
    let token = CancellationToken::new();
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        return Err(CommandError::failed("cannot listen to signals"));
    };
    let cancel = token.clone();
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if !first {
                tracing::warn!("second signal: ending immediately");
                std::process::exit(INTERRUPTED);
            }
            tracing::info!("draining; a second signal ends immediately");
            cancel.cancel();
        }
    });
    Ok(token)
}
