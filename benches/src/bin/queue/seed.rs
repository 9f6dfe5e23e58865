//! Inserts images with queued thumbnail jobs, and measures how fast they are processed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use safelight_domain::{
    ContentHash, ImageFormat, ImageId, JobId, JobKind, Labels, Lane, Status, TaskId, Visibility,
};
use safelight_store::{DynStore, NewUpload};
use safelight_testing::process::busy_seconds;

/// Concurrent inserts.
const CONCURRENCY: usize = 64;

/// Records `count` uploads with only a thumbnail job each.
pub async fn jobs(store: &DynStore, count: usize) -> Result<()> {
    stream::iter(0..count)
        .map(|_| async {
            let image = ImageId::new();
            let upload = NewUpload {
                owner: safelight_domain::Owner::local(),
                quota: safelight_domain::Quota::default(),
                image,
                task: TaskId::new(),
                lane: Lane::Interactive,
                sha256: ContentHash::of(image.0.as_bytes()),
                bytes: 1,
                format: ImageFormat::Jpeg,
                labels: Labels { visibility: Some(Visibility::Public), ..Labels::default() },
                jobs: vec![(JobId::new(), JobKind::Thumbnail)],
                max_attempts: 8,
                trace: None,
                key: None,
            };
            store.accept(&upload).await.map(drop)
        })
        .buffer_unordered(CONCURRENCY)
        .try_collect::<Vec<_>>()
        .await?;
    Ok(())
}

/// The measurement of a drain.
pub struct Drained {
    /// Jobs per second.
    pub rate: f64,
    /// Duration in seconds.
    pub seconds: f64,
    /// Average number of busy processors.
    pub busy: f64,
}

/// Waits until all `count` jobs are done. Measures after the first `head` jobs, because workers start and
/// connect during these.
pub async fn drained(store: &DynStore, count: usize, head: usize) -> Result<Drained> {
    let limit = Instant::now() + Duration::from_mins(10);
    let mut started = None;
    loop {
        let left: u64 = store
            .job_counts()
            .await?
            .iter()
            .filter(|count| count.status != Status::Failed)
            .map(|count| count.count)
            .sum();
        let left = usize::try_from(left)?;
        if started.is_none() && left <= count.saturating_sub(head) {
            started = Some((Instant::now(), busy_seconds()?, left));
        }
        if left == 0
            && let Some((since, busy, jobs)) = started
        {
            let seconds = since.elapsed().as_secs_f64();
            #[allow(clippy::cast_precision_loss)] // exact up to 2^53 jobs
            let rate = jobs as f64 / seconds;
            return Ok(Drained { rate, seconds, busy: (busy_seconds()? - busy) / seconds });
        }
        ensure!(Instant::now() < limit, "{left} jobs are left");
        // Counting many rows is expensive, so poll less often while many jobs are left.
        let pause_ms = if left < 2_000 { 20 } else { 500 };
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
}
