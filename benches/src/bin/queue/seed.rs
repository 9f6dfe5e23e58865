//! Work to be done: images whose thumbnail job is queued.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use safelight_domain::{
    ContentHash, ImageFormat, ImageId, JobId, JobKind, Labels, Lane, Status, TaskId,
};
use safelight_store::{DynStore, NewUpload};
use safelight_testing::process::busy_seconds;

/// Uploads recorded at the same time.
const AT_ONCE: usize = 64;

/// Records `count` uploads that have a thumbnail job each, and nothing else to do.
pub async fn jobs(store: &DynStore, count: usize) -> Result<()> {
    stream::iter(0..count)
        .map(|_| async {
            let image = ImageId::new();
            let upload = NewUpload {
                owner: safelight_domain::Owner::local(),
                visibility: safelight_domain::Visibility::Public,
                quota: safelight_domain::Quota::default(),
                image,
                task: TaskId::new(),
                lane: Lane::Interactive,
                sha256: ContentHash::of(image.0.as_bytes()),
                bytes: 1,
                format: ImageFormat::Jpeg,
                labels: Labels::default(),
                jobs: vec![(JobId::new(), JobKind::Thumbnail)],
                max_attempts: 8,
                trace: None,
                key: None,
            };
            store.accept(&upload).await.map(drop)
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    Ok(())
}

/// How jobs were worked off.
pub struct Drained {
    /// Jobs done per second.
    pub rate: f64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Processors that were busy, of all that the machine has.
    pub busy: f64,
}

/// Measures from when the first `head` of `count` jobs are done, since until then workers start and connect,
/// until none is left.
pub async fn drained(store: &DynStore, count: usize, head: usize) -> Result<Drained> {
    let limit = Instant::now() + Duration::from_mins(10);
    let mut begun = None;
    loop {
        let left: u64 = store
            .job_counts()
            .await?
            .iter()
            .filter(|count| count.status != Status::Failed)
            .map(|count| count.count)
            .sum();
        let left = usize::try_from(left)?;
        if begun.is_none() && left <= count.saturating_sub(head) {
            begun = Some((Instant::now(), busy_seconds()?, left));
        }
        if left == 0
            && let Some((since, busy, jobs)) = begun
        {
            let seconds = since.elapsed().as_secs_f64();
            #[allow(clippy::cast_precision_loss)] // exact up to 2^53 jobs
            let rate = jobs as f64 / seconds;
            return Ok(Drained { rate, seconds, busy: (busy_seconds()? - busy) / seconds });
        }
        ensure!(Instant::now() < limit, "{left} jobs are still there");
        // Counting costs the database as much as there is to count.
        let rest = if left < 2_000 { 20 } else { 500 };
        tokio::time::sleep(Duration::from_millis(rest)).await;
    }
}
