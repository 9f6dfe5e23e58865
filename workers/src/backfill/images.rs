//! Walks over images that are stored: for renditions, and to verify.

use std::collections::HashMap;

use safelight_blobs::{BlobKey, Blobs};
use safelight_domain::{
    Backfill, BackfillKind, ErrorCode, Image, ImageId, ItemOutcome, JobId, JobKind, Presets,
    TaskId, TaskKind,
};
use safelight_store::{BackfillStep, BlockingJob, ChildTask, DynStore, ImageFilter, ReportLine};

use super::{blocking_jobs::failure, error::BackfillError};
use crate::jobs::presets::missing_presets;

/// Images read at once.
const PAGE: u32 = 500;

/// Walks over stored images.
pub(super) struct ImageWalk {
    store: DynStore,
    blobs: Blobs,
    presets: Presets,
}

impl ImageWalk {
    pub fn new(store: DynStore, blobs: Blobs, presets: Presets) -> Self {
        Self { store, blobs, presets }
    }

    /// The next step of a walk, with at most `capacity` images to work on.
    pub async fn step(
        &self,
        backfill: &Backfill,
        capacity: u32,
    ) -> Result<BackfillStep, BackfillError> {
        let spec = &backfill.spec;
        let filter = ImageFilter {
            until: backfill.started_at,
            created_after: spec.created_after,
            format: spec.format,
        };
        let mut step = BackfillStep::of(backfill.id, backfill.cursor.clone());
        if backfill.expected.is_none() {
            step.expected = Some(self.store.count_images(&filter).await?);
            return Ok(step);
        }
        let after: Option<ImageId> = backfill.cursor.as_deref().and_then(|id| id.parse().ok());
        // Most may need nothing; of few that may be handed out, not too many are read in vain.
        let limit = capacity.saturating_mul(4).clamp(50, PAGE);
        let page = self.store.walk_images(&filter, after, limit).await?;
        let ids: Vec<ImageId> = page.iter().map(|image| image.id).collect();
        let mut obstacles = HashMap::<ImageId, Vec<BlockingJob>>::new();
        for obstacle in self.store.blocking_jobs(&ids).await? {
            obstacles.entry(obstacle.image).or_default().push(obstacle);
        }
        for image in &page {
            if step.work.len() >= capacity as usize {
                return Ok(step);
            }
            let mut known = obstacles.remove(&image.id).unwrap_or_default();
            if spec.kind == BackfillKind::Verify
                && !spec.retry_failed
                && let Some(found) = failure(&known, &[JobKind::Verify])
                && !self.still_shows(image, found.code).await?
            {
                known.retain(|obstacle| obstacle.kind != JobKind::Verify);
            }
            match judge(&self.presets, backfill, image, &known) {
                None => step.work.push(child(backfill.spec.kind, image.id)),
                Some(line) => step.settled.push(line),
            }
            step.to = Some(image.id.to_string());
        }
        step.is_last = page.len() < limit as usize;
        Ok(step)
    }

    /// Whether what a verification has found of an original shows without reading it. If not, the original
    /// may have been restored, or was never read because the store was unavailable.
    async fn still_shows(&self, image: &Image, found: ErrorCode) -> Result<bool, BackfillError> {
        let size = self.blobs.size(&BlobKey::Blob(image.sha256)).await?;
        Ok(match found {
            ErrorCode::BlobMissing => size.is_none(),
            ErrorCode::BlobDamaged => size.is_some_and(|size| size != image.bytes),
            _ => false,
        })
    }
}

/// The line of an image that gets no work; `None` if it gets some. Another task that works on it is no
/// reason: the job does not repeat what it finds done.
fn judge(
    presets: &Presets,
    backfill: &Backfill,
    image: &Image,
    obstacles: &[BlockingJob],
) -> Option<ReportLine> {
    let line = |outcome, reason: &str, detail| ReportLine {
        id: image.id.0,
        outcome,
        reason: Some(reason.to_owned()),
        detail,
        source: None,
    };
    let spec = &backfill.spec;
    let renditions = spec.kind == BackfillKind::Renditions;
    if renditions && !spec.all {
        let mut missing = missing_presets(presets, image);
        missing.retain(|name, _| spec.wants(name));
        if missing.is_empty() {
            return Some(line(ItemOutcome::Skipped, "up_to_date", None));
        }
    }
    if spec.retry_failed {
        return None;
    }
    let failed = |kinds: &[JobKind]| failure(obstacles, kinds);
    if renditions {
        let failed = failed(&[JobKind::Write, JobKind::Thumbnail])?;
        return Some(line(ItemOutcome::Skipped, "failed_before", Some(failed.to_string())));
    }
    // What was bad the last time is bad still, and is said each time: a verification that ends well means
    // that all is well.
    if let Some(found) = failed(&[JobKind::Verify]) {
        let detail = format!("found before, and not looked at again: {}", found.message);
        return Some(line(ItemOutcome::Failed, found.code.as_str(), Some(detail)));
    }
    // The bytes of a stored image may be fine whatever became of its renditions. One that is not stored has
    // failed as an upload, which its own task says.
    let failed = image.stored_at.is_none().then(|| failed(JobKind::ALL))??;
    Some(line(ItemOutcome::Skipped, "failed_before", Some(failed.to_string())))
}

fn child(kind: BackfillKind, image: ImageId) -> ChildTask {
    let (task, job) = match kind {
        BackfillKind::Verify => (TaskKind::Verify, JobKind::Verify),
        _ => (TaskKind::Rendition, JobKind::Thumbnail),
    };
    ChildTask {
        task: TaskId::new(),
        kind: task,
        image,
        jobs: vec![(JobId::new(), job)],
        import: None,
    }
}
