//! The metrics of a running server.

use anyhow::{Context, Result, ensure};
use safelight_telemetry::names::{METRICS, Metric, MetricType};
use safelight_testing::{
    client::{Client, TestClient as _},
    metrics::Metrics,
    pictures,
};
use tempfile::TempDir;

use super::serve;

#[tokio::test]
async fn every_metric_has_its_labels_after_one_upload() -> Result<()> {
    let data = TempDir::new()?;
    let server = serve(data.path()).await?;
    let client = Client::new(server.url())?;
    // The counter exists before the first lost lease. Otherwise Prometheus would not see its first step.
    let before = Metrics::of(&client).await?;
    assert!(before.text().contains("\nsafelight_leases_lost_total 0\n"), "{}", before.text());

    client.finished(&client.upload(pictures::jpeg(64, 48, 1)?).await?).await?;
    let after = Metrics::of(&client).await?;
    for metric in METRICS.iter().filter(|metric| metric.is_usual) {
        check_metric(after.text(), metric).with_context(|| metric.name)?;
    }
    // No metric is missing in the table.
    for line in after.text().lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap_or_default();
        assert!(METRICS.iter().any(|metric| metric.name == name), "{name} is not in the table");
    }

    for stage in ["claim", "run", "settle"] {
        let labels = [("kind", "thumbnail"), ("stage", stage)];
        assert!(after.sum("safelight_job_seconds_count", &labels) >= 1.0, "{stage}");
        let bounded = [("kind", "thumbnail"), ("stage", stage), ("le", "60")];
        assert!(
            after.sum("safelight_job_seconds_bucket", &bounded) >= 1.0,
            "{stage}: no histogram"
        );
    }
    let slots = |state: &str| {
        let labels = [("kind", "write"), ("lane", "interactive"), ("state", state)];
        after.sum("safelight_worker_slots", &labels)
    };
    assert!(slots("total") >= 4.0, "{}", after.text());
    assert!(slots("busy").abs() < f64::EPSILON, "idle slots count as busy: {}", after.text());
    assert!((after.sum("safelight_workers", &[("status", "running")]) - 1.0).abs() < f64::EPSILON);
    Ok(())
}

/// Checks the help, the type and the labels of a metric.
fn check_metric(text: &str, metric: &Metric) -> Result<()> {
    let Metric { name, kind, labels, help, .. } = metric;
    ensure!(text.contains(&format!("# HELP {name} {help}\n")), "no HELP");
    ensure!(text.contains(&format!("# TYPE {name} {}\n", kind.as_str())), "no TYPE");
    let series =
        if *kind == MetricType::Histogram { format!("{name}_sum") } else { (*name).into() };
    let mut found = 0;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((head, _)) = line.rsplit_once(' ') else { continue };
        let (series_name, rest) = head.split_once('{').unwrap_or((head, ""));
        if series_name != series {
            continue;
        }
        let inner = rest.trim_end_matches('}');
        let pairs = inner.split(',').filter_map(|pair| pair.split_once('='));
        let mut actual: Vec<&str> = pairs.map(|(label, _)| label).collect();
        let mut expected = labels.to_vec();
        actual.sort_unstable();
        expected.sort_unstable();
        ensure!(actual == expected, "labels {actual:?} instead of {expected:?}");
        found += 1;
    }
    ensure!(found > 0, "no series");
    Ok(())
}
