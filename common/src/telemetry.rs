//! Logs and metrics.

pub mod names;

pub use metrics_exporter_prometheus::PrometheusHandle;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Seconds; from a claim's millisecond to a minute.
const SECONDS_BUCKETS: &[f64] =
    &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// Libraries that repeat what is said elsewhere. The configured filter comes after, and wins.
const QUIET: &str = "lapin=off,sqlx_core::pool=off,sqlx::pool=off,sqlx::postgres::notice=off";

/// Sends log lines to standard error. `filter` is tracing's syntax; an error names what is wrong
/// with it. A second call has no effect.
pub fn init_logs(filter: &str, format: LogFormat) -> Result<(), String> {
    // lapin and sqlx's pool log each lost connection as well, in several lines; whoever uses the
    // connection says it in one. What PostgreSQL notes beside is that it ends them.
    let filter =
        EnvFilter::try_new(format!("{QUIET},{filter}")).map_err(|error| format!("log: {error}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    Ok(())
}

/// Begins to collect metrics; the handle renders them for Prometheus.
pub fn init_metrics() -> Result<PrometheusHandle, String> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS_BUCKETS)
        .map_err(|error| error.to_string())?
        .install_recorder()
        .map_err(|error| error.to_string())?;
    names::describe();
    Ok(handle)
}
