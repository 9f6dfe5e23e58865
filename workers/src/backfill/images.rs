//! Walks over stored images, to make renditions and to verify.

use std::{collections::HashMap, sync::Arc};

use safelight_blobs::{BlobKey, Blobs};
use safelight_domain::{
    Backfill, BackfillKind, ErrorCode, Image, ImageId, ItemOutcome, JobId, JobKind, Presets,
    TaskId, TaskKind,
};
use safelight_store::{BackfillStep, Backfills, BlockingJob, ChildTask, ImageFilter, ReportLine};

use super::{blocking_jobs::failure, error::BackfillError};
use crate::jobs::presets::missing_presets;

/// Images read in one query.
const PAGE: u32 = 500;

/// Walks over stored images.
pub(super) struct ImageWalk {
    backfills: Arc<dyn Backfills>,
    blobs: Blobs,
    presets: Presets,
}

impl ImageWalk {
    pub fn new(backfills: Arc<dyn Backfills>, blobs: Blobs, presets: Presets) -> Self {
        Self { backfills, blobs, presets }
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
            step.expected = Some(self.backfills.count_images(&filter).await?);
            return Ok(step);
        }
        let after: Option<ImageId> = backfill.cursor.as_deref().and_then(|id| id.parse().ok());
        // Most may need no work, so more are read than there is capacity for, but not too many in vain.
        let limit = capacity.saturating_mul(4).clamp(50, PAGE);
        let page = self.backfills.walk_images(&filter, after, limit).await?;
        let ids: Vec<ImageId> = page.iter().map(|image| image.id).collect();
        let mut blocking_jobs = HashMap::<ImageId, Vec<BlockingJob>>::new();
        for job in self.backfills.blocking_jobs(&ids).await? {
            blocking_jobs.entry(job.image).or_default().push(job);
        }
        for image in &page {
            if step.work.len() >= capacity as usize {
                return Ok(step);
            }
            let mut blocking = blocking_jobs.remove(&image.id).unwrap_or_default();
            if spec.kind == BackfillKind::Verify
                && !spec.retry_failed
                && let Some(found) = failure(&blocking, &[JobKind::Verify])
                && !self.still_holds(image, found.code).await?
            {
                blocking.retain(|job| job.kind != JobKind::Verify);
            }
            match judge(&self.presets, backfill, image, &blocking) {
                None => step.work.push(child(backfill.spec.kind, image.id)),
                Some(line) => step.without_work.push(line),
            }
            step.to = Some(image.id.to_string());
        }
        step.is_last = page.len() < limit as usize;
        Ok(step)
    }

    /// Whether the finding of an earlier verification still holds, as far as the original's size shows it. If
    /// not, the original may have been restored, or was never read because the store was unavailable.
    async fn still_holds(&self, image: &Image, found: ErrorCode) -> Result<bool, BackfillError> {
        let size = self.blobs.size(&BlobKey::Blob(image.sha256)).await?;
        Ok(match found {
            ErrorCode::BlobMissing => size.is_none(),
            ErrorCode::BlobDamaged => size.is_some_and(|size| size != image.bytes),
            _ => false,
        })
    }
}

/// The line of an image that needs no work; `None` if it needs some, also while another task works on it: the
/// job does not repeat work that is done.
fn judge(
    presets: &Presets,
    backfill: &Backfill,
    image: &Image,
    blocking: &[BlockingJob],
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
    let failed = |kinds: &[JobKind]| failure(blocking, kinds);
    if renditions {
        let failed = failed(&JobKind::OF_NEW_IMAGE)?;
        return Some(line(ItemOutcome::Skipped, "failed_before", Some(failed.to_string())));
    }
    // An earlier finding that still holds is reported again: a verification that succeeds means that
    // everything is intact.
    if let Some(found) = failed(&[JobKind::Verify]) {
        let detail = format!("found before, and not looked at again: {}", found.message);
        return Some(line(ItemOutcome::Failed, found.code.as_str(), Some(detail)));
    }
    // The bytes of a stored image may be intact even if its renditions failed. If it is not stored, its
    // upload has failed, which its own task reports.
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
