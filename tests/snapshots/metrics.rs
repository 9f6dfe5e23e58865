//! Metrics: names, types, labels, help and histogram buckets, and the series of a server after one upload and
//! one read.
//!
//! Dashboards, alert rules and autoscalers use names, labels and label values. After a rename they show no
//! data, and no error. New metrics and better help texts are safe.

use std::fmt::Write;

use anyhow::Result;
use safelight_telemetry::names::METRICS;
use safelight_testing::wait::eventually;
use safelight_testing::{
    client::{Client, TestClient},
    metrics::Metrics,
    pictures,
};
use tempfile::TempDir;

use super::assert_reviewed;
use crate::e2e::serve;

/// Includes the metrics that appear only after a fault. `e2e::metrics` compares the table with a running
/// server.
#[test]
fn metric_table() -> Result<()> {
    let mut text = String::new();
    for metric in METRICS {
        let (name, labels) = (metric.name, metric.labels.join(","));
        writeln!(text, "# HELP {name} {}", metric.help)?;
        writeln!(text, "# TYPE {name} {}\n{name}{{{labels}}}\n", metric.kind.as_str())?;
    }
    assert_reviewed("metrics", &text);
    Ok(())
}

#[tokio::test]
async fn series_of_a_running_server() -> Result<()> {
    let data = TempDir::new()?;
    let server = serve(data.path()).await?;
    let client = Client::new(server.url())?;
    let task = client.finished(&client.upload(pictures::jpeg(64, 48, 1)?).await?).await?;
    let image = task["image"]["id"].as_str().unwrap_or_default();
    client.bytes(&format!("/images/{image}/small")).await?;
    // A task ends shortly before its last attempt is counted.
    let mut text = String::new();
    eventually("the last attempt is counted", async || {
        let metrics = Metrics::of(&client).await?;
        text = series(metrics.text());
        Ok(metrics.sum("safelight_attempts_total", &[("kind", "thumbnail")]) >= 1.0
            && metrics.sum("safelight_job_seconds_count", &[("stage", "settle")]) >= 2.0)
    })
    .await?;
    assert_reviewed("metrics_series", &text);
    Ok(())
}

/// The series of `/metrics`, sorted and without values. The buckets of a histogram are on one line.
fn series(metrics: &str) -> String {
    let lines = metrics.lines().filter(|line| !line.starts_with('#'));
    let mut series: Vec<String> = Vec::new();
    for (head, _) in lines.filter_map(|line| line.rsplit_once(' ')) {
        let Some((labels, bound)) = head.split_once(",le=") else {
            series.push(head.to_owned());
            continue;
        };
        let (bound, start) = (bound.trim_end_matches('}'), format!("{labels}}} le"));
        match series.last_mut().filter(|last| last.starts_with(&start)) {
            Some(last) => last.extend([" ", bound]),
            None => series.push(format!("{start} {bound}")),
        }
    }
    series.sort_unstable();
    series.join("\n")
}
