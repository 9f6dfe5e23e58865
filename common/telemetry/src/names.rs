//! Every metric, described once. `docs/fleet.md` has the same table for people; dashboards and
//! autoscalers go by these names.

use metrics::{describe_counter, describe_gauge, describe_histogram};

/// What a metric's value does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricType {
    /// It grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It is spread over buckets.
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
    /// What its value does.
    pub kind: MetricType,
    /// The labels of each of its series.
    pub labels: &'static [&'static str],
    /// Whether a process that does everything shows it after one upload; the others are there once
    /// what they count has happened.
    pub is_usual: bool,
    /// What it says.
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

/// All of them.
#[rustfmt::skip] // a table
pub const METRICS: &[Metric] = &[
    metric(Counter, "safelight_uploads_total", &["result"], true,
        "Uploads answered, by result."),
    metric(Gauge, "safelight_jobs", &["kind", "lane", "status"], true,
        "Jobs that are queued, running or failed for good. The same on every node."),
    metric(Gauge, "safelight_oldest_due_seconds", &["kind", "lane"], true,
        "Age of the oldest job that is due and waits. The same on every node."),
    metric(Gauge, "safelight_unpublished_jobs", &[], true,
        "Due jobs whose message has yet to reach the broker. The same on every node."),
    metric(Gauge, "safelight_workers", &["status"], true,
        "Workers in the registry: running, draining, lost. The same on every node."),
    metric(Gauge, "safelight_worker_slots", &["kind", "lane", "state"], true,
        "Attempts that this worker may run at once (total; lanes of a kind share them) and runs (busy)."),
    metric(Counter, "safelight_attempts_total", &["kind", "outcome", "code"], true,
        "Attempts that ended here: succeeded, retry, failed or released, with the error's code or none."),
    metric(Histogram, "safelight_job_seconds", &["kind", "stage"], true,
        "Time that attempts spent in a stage: claim, run or settle."),
    metric(Counter, "safelight_leases_lost_total", &[], true,
        "Attempts whose lease was lost or whose job was cancelled while they ran here."),
    metric(Counter, "safelight_dead_letters_total", &["kind"], false,
        "Messages that the broker gave up on, reconciled here."),
    metric(Counter, "safelight_blob_reads_total", &["source"], false,
        "Reads of bytes that reached the blob store."),
    metric(Counter, "safelight_cache_requests_total", &["tier", "result"], true,
        "Questions to the caches of bytes, by tier and result."),
    metric(Gauge, "safelight_cache_bytes", &["tier"], true,
        "Bytes that this process caches in memory."),
    metric(Counter, "safelight_purges_total", &["result"], false,
        "Calls that told caching proxies of deleted images."),
    metric(Counter, "safelight_connections_refused_total", &[], false,
        "Connections closed at once because there were max_connections already."),
    metric(Counter, "safelight_trace_spans_total", &["result"], false,
        "Spans exported, sent in vain (failed), or dropped for want of room."),
];

/// Tells the recorder what all of them are.
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
    fn the_documentation_has_the_same_table() {
        let here: Vec<_> = METRICS
            .iter()
            .map(|one| [one.name.to_owned(), one.kind.as_str().to_owned(), one.labels.join(", ")])
            .collect();
        assert_eq!(documented(), here);
    }
}
