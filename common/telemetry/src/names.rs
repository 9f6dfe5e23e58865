//! All metrics in one table. `docs/fleet.md` has the same table for people; dashboards and autoscalers rely on
//! these names.

use metrics::{describe_counter, describe_gauge, describe_histogram};

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricType {
    /// It only increases.
    Counter,
    /// It increases and decreases.
    Gauge,
    /// A distribution over buckets.
    Histogram,
}

impl MetricType {
    /// Prometheus' name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: MetricType,
    /// The labels of its series.
    pub labels: &'static [&'static str],
    /// Whether `safelight serve` shows it after one upload. Others appear after their first event.
    pub is_usual: bool,
    /// Its help text.
    pub help: &'static str,
}

const fn metric(
    kind: MetricType,
    name: &'static str,
    labels: &'static [&'static str],
    is_usual: bool,
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, is_usual, help }
}

use MetricType::{Counter, Gauge, Histogram};

/// All metrics.
#[rustfmt::skip] // a table
pub const METRICS: &[Metric] = &[
    metric(Counter, "safelight_uploads_total", &["result"], true,
        "Uploads answered, by result."),
    metric(Gauge, "safelight_jobs", &["kind", "lane", "status"], true,
        "Jobs that are queued, running or failed for good. The same on every node."),
    metric(Gauge, "safelight_oldest_due_seconds", &["kind", "lane"], true,
        "Age of the oldest waiting job that is due. The same on every node."),
    metric(Gauge, "safelight_unpublished_jobs", &[], true,
        "Due jobs whose message is not published yet. The same on every node."),
    metric(Gauge, "safelight_removals_held_back", &[], true,
        "1 while nothing unknown is removed, since the database may be an older copy. The same on every node."),
    metric(Gauge, "safelight_workers", &["status"], true,
        "Workers in the registry: running, draining, lost. The same on every node."),
    metric(Gauge, "safelight_worker_slots", &["kind", "lane", "state"], true,
        "Slots for concurrent attempts of this worker: total (shared by the lanes of a kind) and busy."),
    metric(Counter, "safelight_attempts_total", &["kind", "outcome", "code"], true,
        "Attempts that ended here: succeeded, retry, failed or released, with the error's code or none."),
    metric(Histogram, "safelight_job_seconds", &["kind", "stage"], true,
        "Duration of each stage of an attempt: claim, run or settle."),
    metric(Counter, "safelight_leases_lost_total", &[], true,
        "Attempts whose lease was lost or whose job was cancelled while they ran here."),
    metric(Counter, "safelight_dead_letters_total", &["kind"], false,
        "Dead letters of the broker that this process reconciled."),
    metric(Counter, "safelight_clock_steps_total", &[], true,
        "How often this process saw that the database's clock had been ahead or was set back."),
    metric(Counter, "safelight_blob_reads_total", &["source"], false,
        "Reads from the blob store."),
    metric(Counter, "safelight_cache_requests_total", &["tier", "result"], true,
        "Lookups in the caches of image bytes, by tier and result."),
    metric(Gauge, "safelight_cache_bytes", &["tier"], true,
        "Bytes that this process caches in memory."),
    metric(Gauge, "safelight_free_bytes", &["place"], true,
        "Free bytes of the file systems that uploads fill: blobs, database, spool."),
    metric(Counter, "safelight_purges_total", &["result"], false,
        "PURGE requests to caching proxies for deleted images, by result."),
    metric(Counter, "safelight_connections_refused_total", &[], false,
        "Connections closed at once because max_connections was reached."),
    metric(Counter, "safelight_connections_closed_for_others_total", &[], false,
        "Connections that waited for their clients and were closed because others needed their place."),
    metric(Counter, "safelight_trace_spans_total", &["result"], false,
        "Spans by result: exported, failed to send, or dropped because the queue was full."),
];

/// Registers all metrics with the recorder.
pub(super) fn describe() {
    for metric in METRICS {
        match metric.kind {
            Counter => describe_counter!(metric.name, metric.help),
            Gauge => describe_gauge!(metric.name, metric.help),
            Histogram => describe_histogram!(metric.name, metric.help),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of the documentation's table: name, type, labels.
    fn documented() -> Vec<[String; 3]> {
        let text = include_str!("../../../docs/fleet.md");
        let rows = text.lines().filter(|line| line.starts_with("| `safelight_"));
        rows.map(|row| {
            let mut cells = row.split('|').skip(1).map(|cell| cell.trim().replace('`', ""));
            std::array::from_fn(|_| cells.next().expect("name, type and labels"))
        })
        .collect()
    }

    #[test]
    fn metrics_match_the_documentation() {
        let here: Vec<_> = METRICS
            .iter()
            .map(|one| [one.name.to_owned(), one.kind.as_str().to_owned(), one.labels.join(", ")])
            .collect();
        assert_eq!(documented(), here);
    }
}
