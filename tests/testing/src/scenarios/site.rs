//! What scenarios share: short waits, clients, and watching a node during an outage.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use reqwest::StatusCode;

use super::outcome::Outcome;
use crate::{
    audit::{Audit, Ledger, SETTLED_LIMIT},
    client::Client,
    load::{Load, LoadResult},
    pictures,
    wait::eventually_within,
};

/// Attempts follow each other so quickly that an outage that counted them would use up all of them, and bytes of
/// rejected uploads are removed within seconds.
pub(super) const ENV: &[(&str, &str)] = &[
    ("SAFELIGHT_BACKOFF_BASE_MS", "20"),
    ("SAFELIGHT_BACKOFF_CAP_MS", "200"),
    ("SAFELIGHT_LEASE_MS", "5000"),
    ("SAFELIGHT_METADATA_CACHE_MS", "0"),
    ("SAFELIGHT_STAGED_GRACE_MS", "5000"),
];

/// Concurrent clients.
pub(super) const CLIENTS: usize = 3;

/// Uploads that are queued when a fault begins.
const BACKLOG: usize = 20;

/// How often a node is asked whether it is ready.
const POLL: Duration = Duration::from_millis(100);

/// Uploads pictures that are still queued when this returns.
pub(super) async fn backlog(client: &Client) -> Result<Ledger> {
    let (ledger, photo) = (Ledger::default(), pictures::jpeg(320, 240, 1)?);
    let bodies: Vec<_> = (0..BACKLOG)
        .map(|number| pictures::with_comment(&photo, &format!("backlog {number}")))
        .collect();
    let uploads = bodies.iter().map(|body| client.upload(body.clone()));
    let tasks = futures::future::try_join_all(uploads).await?;
    for (task, body) in tasks.iter().zip(&bodies) {
        ledger.record(task, body)?;
    }
    Ok(ledger)
}

/// Whether the node says that it is ready.
async fn is_ready(client: &Client) -> bool {
    client.get("/readyz").await.is_ok_and(|answer| answer.status() == StatusCode::OK)
}

/// Lets an outage pass; returns whether the node said that it is not ready, from some moment in its first half until
/// its end.
pub(super) async fn is_noticed(client: &Client, outage: Duration) -> bool {
    let started = Instant::now();
    let mut ready_until = Duration::ZERO;
    while started.elapsed() < outage {
        if is_ready(client).await {
            ready_until = started.elapsed();
        }
        tokio::time::sleep(POLL).await;
    }
    ready_until < outage / 2
}

/// Waits until uploads are accepted and the node is ready again, stops the clients, and adds what they saw.
pub(super) async fn recover(
    client: &Client,
    load: Load,
    outcome: &mut Outcome,
) -> Result<LoadResult> {
    load.wait_for_more(10).await?;
    eventually_within(
        SETTLED_LIMIT,
        "the node is ready again",
        async || Ok(is_ready(client).await),
    )
    .await?;
    let mut result = load.stop().await?;
    outcome.reject(std::mem::take(&mut result.rejections));
    Ok(result)
}

/// Audits a copy of the state again and again until it is clean, for at most [`SETTLED_LIMIT`], and adds the last
/// report. `copy` makes the copy and its audit; it may fail while files are removed.
pub(super) async fn audit_copies<T>(
    ledger: &Ledger,
    outcome: &mut Outcome,
    copy: impl Fn() -> Result<(T, Audit<'static>)>,
) -> Result<()> {
    let mut last = None;
    let clean = eventually_within(SETTLED_LIMIT, "the audit is clean", async || {
        let Ok((_copy, audit)) = copy() else { return Ok(false) };
        // SQLite may find half of a transaction in a copy.
        let Ok(report) = audit.run_within(ledger, Duration::ZERO).await else { return Ok(false) };
        let is_clean = report.is_clean();
        last = Some(report);
        Ok(is_clean)
    });
    let ended = clean.await;
    ensure!(last.is_some(), "no audit ran: {ended:?}");
    outcome.add(last.unwrap_or_default());
    Ok(())
}
