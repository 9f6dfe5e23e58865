//! A long-running process: its runtime, its signals, its background tasks.

use std::{future::Future, time::Duration};

use safelight_config::Config;
use safelight_domain::retry::Reconnect;
use safelight_telemetry::PrometheusHandle;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::exit::Exit;

/// How often recorded samples are folded up.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Runs a command to its end.
pub fn block_on(command: impl Future<Output = Result<(), Exit>>) -> Result<(), Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Exit::failed(format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(async {
        let result = command.await;
        safelight_telemetry::traces::flush().await;
        result
    });
    // Whatever still runs on a blocking thread is not worth waiting for: nothing counts before it
    // is committed.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

/// Logs and traces as configured, and as many open files as the system allows: each client is one.
/// `role` is the subcommand.
pub fn prepare(config: &Config, role: &'static str) -> Result<(), Exit> {
    safelight_telemetry::init(config, role).map_err(|error| {
        let exit = Exit::usage(&error);
        if error.starts_with("log:") {
            return exit.hint("log is a level (info), or levels by target (info,sqlx=warn)");
        }
        exit.hint("see otlp_endpoint in `safelight config --defaults`, and the OTEL_* variables")
    })?;
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    Ok(())
}

/// Begins to collect metrics, before anything that has some; the handle renders them.
pub fn metrics(shutdown: &CancellationToken) -> Result<PrometheusHandle, Exit> {
    let metrics = safelight_telemetry::init_metrics().map_err(Exit::failed)?;
    let upkeep = metrics.clone();
    supervise("metrics upkeep", shutdown, move |token| keep_up(upkeep.clone(), token));
    Ok(metrics)
}

/// Folds recorded samples into their histograms, which otherwise grow until somebody scrapes.
async fn keep_up(metrics: PrometheusHandle, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(METRICS_UPKEEP);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        metrics.run_upkeep();
    }
}

/// A token that the first SIGTERM or Ctrl-C cancels. A second ends the process at once, which
/// loses nothing: leases run out, unsettled messages come again.
pub fn shutdown_on_signal() -> Result<CancellationToken, Exit> {
    let token = CancellationToken::new();
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        return Err(Exit::failed("cannot listen to signals"));
    };
    let cancel = token.clone();
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if !first {
                tracing::warn!("second signal: ending at once");
                std::process::exit(130);
            }
            tracing::info!("draining; a second signal ends at once");
            cancel.cancel();
        }
    });
    Ok(token)
}

/// Runs a background task that must not die: one that panics is begun anew.
pub fn supervise<F>(
    name: &'static str,
    shutdown: &CancellationToken,
    begin: impl Fn(CancellationToken) -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let mut reconnect = Reconnect::default();
        while let Err(error) = tokio::spawn(begin(shutdown.clone())).await {
            tracing::error!(task = name, %error, "a background task broke; it is begun anew");
            tokio::select! {
                () = tokio::time::sleep(reconnect.next_delay()) => {}
                () = shutdown.cancelled() => break,
            }
        }
    })
}
