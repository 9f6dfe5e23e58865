//! Work to be done: images whose thumbnail job is queued.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use safelight_common::{
    domain::{ContentHash, ImageFormat, ImageId, JobId, JobKind, Lane, Status, TaskId},
    store::{DynStore, NewUpload},
};

/// Uploads recorded at the same time.
const AT_ONCE: usize = 64;

/// Records `count` uploads that have a thumbnail job each, and nothing else to do.
pub async fn jobs(store: &DynStore, count: usize) -> Result<()> {
    stream::iter(0..count)
        .map(|_| async {
            let image = ImageId::new();
            let upload = NewUpload {
                owner: safelight_common::domain::Owner::local(),
                visibility: safelight_common::domain::Visibility::Public,
                quota: safelight_common::domain::Quota::default(),
                image,
                task: TaskId::new(),
                lane: Lane::Interactive,
                sha256: ContentHash::of(image.0.as_bytes()),
                bytes: 1,
                format: ImageFormat::Jpeg,
                title: None,
                tags: Vec::new(),
                filename: None,
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

/// Returns how long it takes until no job is left, from when the first `head` of `count` are done: until
/// then workers start and connect. What remains is given with it.
pub async fn drained(store: &DynStore, count: usize, head: usize) -> Result<(Duration, usize)> {
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
            begun = Some((Instant::now(), left));
        }
        if left == 0
            && let Some((since, left)) = begun
        {
            return Ok((since.elapsed(), left));
        }
        ensure!(Instant::now() < limit, "{left} jobs are still there");
        // Counting costs the database as much as there is to count.
        let rest = if left < 2_000 { 20 } else { 500 };
        tokio::time::sleep(Duration::from_millis(rest)).await;
    }
}
