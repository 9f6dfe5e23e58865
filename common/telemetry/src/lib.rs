//! Logs, metrics and traces.

mod export;
mod health;
mod json;
pub mod names;
pub mod traces;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use safelight_config::{Config, LogFormat};
use tracing_subscriber::{
    Layer, Registry,
    filter::{ParseError, Targets},
    fmt::format::JsonFields,
    layer::SubscriberExt,
    registry,
    util::SubscriberInitExt,
};

pub use health::{DependencyHealth, NoAnswer};
pub use metrics_exporter_prometheus::PrometheusHandle;

/// Histogram buckets in seconds, from the millisecond of a claim to a minute.
const SECONDS_BUCKETS: &[f64] =
    &[0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// Filters for libraries that repeat what is logged elsewhere, and for spans that are only for traces
/// ([`traces::TARGET`]). The configured filter follows, and overrides them.
const QUIET: &str =
    "lapin=off,sqlx_core::pool=off,sqlx::pool=off,sqlx::postgres::notice=off,safelight_trace=off";

/// Writes log lines to standard error and, if a collector is configured, exports spans to it. `role` identifies this
/// process in traces: `serve`, `api`, `worker`. An error names the invalid key. A second call has no effect. Call
/// [`traces::flush`] at shutdown.
///
/// With a collector, it must be called within a tokio runtime.
pub fn init(config: &Config, role: &'static str) -> Result<(), String> {
    // lapin and sqlx's pool log each lost connection in several lines; the users of the connection log it in one.
    // PostgreSQL's notices only report that it closes connections.
    let filter = filter(&config.log).map_err(|error| format!("log: {error}"))?;
    let logs = logs(config.log_format);
    let _ = match &config.otlp_endpoint {
        // A single filter for all: filtered events cost nothing more.
        None => registry().with(logs).with(filter).try_init(),
        Some(endpoint) => {
            let spans = traces::layer(endpoint, config.trace_sample_ratio, role)
                .map_err(|error| format!("otlp_endpoint: {error}"))?;
            registry().with(logs.with_filter(filter)).with(spans).try_init()
        }
    };
    Ok(())
}

/// Parses a level, or levels by target that are separated by commas, with or without spaces.
fn filter(configured: &str) -> Result<Targets, ParseError> {
    let configured = configured.split(',').map(str::trim).filter(|level| !level.is_empty());
    QUIET.split(',').chain(configured).collect::<Vec<_>>().join(",").parse()
}

fn logs(format: LogFormat) -> Box<dyn Layer<Registry> + Send + Sync> {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.fmt_fields(JsonFields::new()).event_format(json::FlatJson).boxed(),
    }
}

/// Starts to collect metrics. The handle renders them for Prometheus.
pub fn init_metrics() -> Result<PrometheusHandle, String> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS_BUCKETS)
        .map_err(|error| error.to_string())?
        .install_recorder()
        .map_err(|error| error.to_string())?;
    names::describe();
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::filter;

    #[test]
    fn the_configured_filter_overrides_the_quiet_targets() {
        let logs = filter("info, lapin=debug,,safelight_workers=trace").expect("a valid filter");
        assert!(logs.would_enable("safelight_api", &Level::INFO));
        assert!(!logs.would_enable("safelight_api", &Level::DEBUG));
        assert!(logs.would_enable("safelight_workers::jobs", &Level::TRACE));
        assert!(logs.would_enable("lapin::channel", &Level::DEBUG));
        assert!(!logs.would_enable("sqlx_core::pool", &Level::ERROR));
    }

    #[test]
    fn an_unknown_level_is_an_error() {
        assert!(filter("info,safelight_api=loud").is_err());
        let silent = filter("").expect("a valid filter");
        assert!(!silent.would_enable("safelight_api", &Level::ERROR));
    }
}
