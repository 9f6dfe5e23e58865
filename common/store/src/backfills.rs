//! Backfills: tasks that walk over many images and create child tasks for them.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use safelight_domain::{
    Backfill, BackfillSpec, ContentHash, Failure, Image, ImageFormat, ImageId, ItemOutcome, JobId,
    JobKind, Labels, Owner, Quota, Status, TaskId, TaskKind, Usage, WorkerId,
};
use uuid::Uuid;

use crate::StoreError;

/// Starting, leading and reporting backfills.
#[async_trait]
pub trait Backfills: Send + Sync + 'static {
    /// Starts a backfill: records its task, queued, and its request. Starting it again changes nothing.
    /// Returns `false`, without any effect, if its id belongs to another task, or to a backfill with another
    /// request.
    async fn create_backfill(&self, new: &NewBackfill) -> Result<bool, StoreError>;

    /// Takes or keeps for `hold` the lead of up to `limit` backfills that have not ended and that no other
    /// coordinator leads, and returns those that it leads now: running ones before paused ones, oldest first.
    /// A lead is renewed only after a third of its time, so that frequent calls cost no writes.
    async fn lead_backfills(
        &self,
        coordinator: WorkerId,
        hold: Duration,
        limit: u32,
    ) -> Result<Vec<Backfill>, StoreError>;

    /// Counts the images that a walk would visit.
    async fn count_images(&self, filter: &ImageFilter) -> Result<u64, StoreError>;

    /// The next `limit` images of a walk, ordered by id, with their renditions.
    async fn walk_images(
        &self,
        filter: &ImageFilter,
        after: Option<ImageId>,
        limit: u32,
    ) -> Result<Vec<Image>, StoreError>;

    /// For each of `hashes` an image of the owner with these bytes that is not discarded, if there is one: the
    /// oldest sound one (stored, or being stored, and not failed for good), else the oldest.
    async fn images_with_blobs(
        &self,
        owner: &Owner,
        hashes: &[ContentHash],
    ) -> Result<Vec<(ContentHash, ImageId)>, StoreError>;

    /// The jobs of `images` that are open or have failed for good, one for each image and kind: an open one
    /// before a failed one. A failure does not count once a later job of its kind has succeeded for that
    /// image, and that of a verify job does not count once the same bytes were stored again.
    async fn blocking_jobs(&self, images: &[ImageId]) -> Result<Vec<BlockingJob>, StoreError>;

    /// Records one step of a walk in one transaction: counts, report lines (of a dry run only those of
    /// [`BackfillStep::done`]), and a task with its jobs (bulk lane, due immediately) for each image to work
    /// on. Returns `false`, without any effect, if the walk has moved since, or was paused or cancelled:
    /// another coordinator may have taken over.
    ///
    /// A picture whose bytes a sound image has by now (see [`Backfills::images_with_blobs`]) is skipped as a
    /// duplicate: of concurrent steps that import the same picture, one creates the image.
    async fn advance_backfill(&self, step: &BackfillStep) -> Result<bool, StoreError>;

    /// Counts up to `limit` ended tasks of a backfill, writes their report lines, and removes them unless
    /// they failed; then ends the backfill if its walk is over and no task is open. Returns how many were
    /// counted.
    async fn collect_results(&self, id: TaskId, limit: u32) -> Result<u64, StoreError>;

    /// Queues up to `limit` failed images of a backfill again while it is [`Backfill::retrying`]; it stops
    /// retrying if none are left. Returns how many.
    async fn retry_backfill(&self, id: TaskId, limit: u32) -> Result<u64, StoreError>;

    /// Pauses or resumes a backfill. Returns `false` if it has ended or was cancelled, or if it is to be
    /// paused and has created all of its child tasks.
    async fn pause_backfill(&self, id: TaskId, paused: bool) -> Result<bool, StoreError>;

    /// Up to `limit` lines of a backfill's report, ordered by their ids, after the one given. Open images have
    /// no line yet.
    async fn backfill_report(
        &self,
        id: TaskId,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<ReportLine>, StoreError>;
}

/// A backfill to start.
#[derive(Debug, Clone, PartialEq)]
pub struct NewBackfill {
    /// Its task. It leaves out images that are accepted later.
    pub task: TaskId,
    /// The owner of the task, and of the images that an import creates.
    pub owner: Owner,
    /// What to do.
    pub spec: BackfillSpec,
}

/// Which images a walk visits: never discarded ones.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageFilter {
    /// Only those accepted until this time.
    pub until: DateTime<Utc>,
    /// Only those accepted at this time or later.
    pub created_after: Option<DateTime<Utc>>,
    /// Only originals of this format.
    pub format: Option<ImageFormat>,
}

/// Another job that may make a job of a backfill useless or impossible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockingJob {
    /// The image.
    pub image: ImageId,
    /// The kind of the job.
    pub kind: JobKind,
    /// The job's status: queued, running or failed.
    pub status: Status,
    /// Why it failed.
    pub failure: Option<Failure>,
}

/// One step of a walk: what it found, and where the walk continues.
#[derive(Debug, Clone, PartialEq)]
pub struct BackfillStep {
    /// The backfill.
    pub task: TaskId,
    /// The cursor before the step. The step counts only if the walk is still there.
    pub from: Option<String>,
    /// The cursor after the step.
    pub to: Option<String>,
    /// How many images or sources there are, if the step has counted them.
    pub expected: Option<u64>,
    /// Images to work on. A dry run only counts them.
    pub work: Vec<ChildTask>,
    /// Each job's limit of attempts.
    pub max_attempts: u32,
    /// Images, or sources of an import, without work: skipped or refused.
    pub without_work: Vec<ReportLine>,
    /// Work that the step has done itself, or would do without the dry run: counted as successful, with a
    /// line each.
    pub done: Vec<ReportLine>,
    /// How many images need nothing and no line, by reason.
    pub passed: BTreeMap<String, u64>,
    /// How many seconds of the backfill's rate the step uses up.
    pub paced_seconds: f64,
    /// Whether the walk has ended.
    pub is_last: bool,
    /// Why the walk stopped early.
    pub problem: Option<String>,
}

/// A task that a backfill creates for one image.
#[derive(Debug, Clone, PartialEq)]
pub struct ChildTask {
    /// The task to create.
    pub task: TaskId,
    /// Its kind.
    pub kind: TaskKind,
    /// Its image.
    pub image: ImageId,
    /// Its jobs, with ids in ascending order.
    pub jobs: Vec<(JobId, JobKind)>,
    /// Of an import: the image to create.
    pub import: Option<ImportedImage>,
}

/// An imported picture whose bytes are durably stored.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportedImage {
    /// Where it was found.
    pub source: String,
    /// The hash of the bytes.
    pub sha256: ContentHash,
    /// The number of bytes.
    pub bytes: u64,
    /// The format as sniffed.
    pub format: ImageFormat,
    /// What the client calls it.
    pub labels: Labels,
}

/// A line of a backfill's report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportLine {
    /// The image; for a source of an import that never became one, an id of the line.
    pub id: Uuid,
    /// Its outcome.
    pub outcome: ItemOutcome,
    /// Why it was skipped, or the code of its failure.
    pub reason: Option<String>,
    /// Details, for people.
    pub detail: Option<String>,
    /// Of an import: where it was found.
    pub source: Option<String>,
}

impl ReportLine {
    /// The line of a picture that an import found at `source` and that exceeds the owner's quota.
    pub fn over_quota(id: Uuid, source: String) -> Self {
        Self {
            id,
            outcome: ItemOutcome::Failed,
            reason: Some("over_quota".to_owned()),
            detail: Some(
                "the owner's quota has no room for it; once there is room, import it again"
                    .to_owned(),
            ),
            source: Some(source),
        }
    }
}

impl BackfillStep {
    /// An empty step of the backfill `task` that starts and ends at `from`.
    pub fn of(task: TaskId, from: Option<String>) -> Self {
        Self {
            task,
            to: from.clone(),
            from,
            expected: None,
            work: Vec::new(),
            max_attempts: 1,
            without_work: Vec::new(),
            done: Vec::new(),
            passed: BTreeMap::new(),
            paced_seconds: 0.0,
            is_last: false,
            problem: None,
        }
    }

    /// The hashes of the pictures that the step imports.
    pub fn hashes(&self) -> Vec<ContentHash> {
        self.work.iter().filter_map(|child| Some(child.import.as_ref()?.sha256)).collect()
    }

    /// Turns pictures that are `known` by now into skipped lines.
    #[must_use]
    pub fn skip_duplicates(mut self, known: &[(ContentHash, ImageId)]) -> Self {
        for child in self.work.extract_if(.., |child| duplicate(child, known).is_some()) {
            self.without_work.push(ReportLine {
                id: child.image.0,
                outcome: ItemOutcome::Skipped,
                reason: Some("duplicate".to_owned()),
                detail: duplicate(&child, known).map(|image| format!("equal to image {image}")),
                source: child.import.map(|import| import.source),
            });
        }
        self
    }

    /// Turns pictures that exceed `quota`, of which `used` is taken, into failed lines. Their bytes
    /// stay without an image until garbage is collected.
    #[must_use]
    pub fn refuse_over_quota(mut self, quota: Quota, mut used: Usage) -> Self {
        let has_no_room = |child: &mut ChildTask| {
            child.import.as_ref().is_some_and(|new| !quota.take(&mut used, new.bytes))
        };
        let refused = self.work.extract_if(.., has_no_room);
        let lines = refused
            .filter_map(|child| Some(ReportLine::over_quota(child.image.0, child.import?.source)));
        self.without_work.extend(lines);
        self
    }

    /// Adds the skipped images to the counts by reason; returns how many failed without a child task.
    pub fn count(&self, skipped: &mut BTreeMap<String, u64>) -> u64 {
        for (reason, count) in &self.passed {
            *skipped.entry(reason.clone()).or_default() += count;
        }
        let mut refused = 0;
        for item in &self.without_work {
            if item.outcome == ItemOutcome::Skipped {
                *skipped.entry(item.reason.clone().unwrap_or_default()).or_default() += 1;
            } else {
                refused += 1;
            }
        }
        refused
    }
}

/// The known image with the same bytes as an import's picture.
fn duplicate(child: &ChildTask, known: &[(ContentHash, ImageId)]) -> Option<ImageId> {
    let sha256 = child.import.as_ref()?.sha256;
    known.iter().find(|(hash, _)| *hash == sha256).map(|(_, image)| *image)
}

/// The ended children of a backfill: their report lines, and which of their tasks are kept or removed.
#[derive(Default)]
pub struct CollectedResults {
    /// Their lines in the report.
    pub lines: Vec<ReportLine>,
    /// Failed tasks: kept, so that a person can retry them.
    pub failed: Vec<Uuid>,
    /// All other tasks: removed.
    pub others: Vec<Uuid>,
}

impl CollectedResults {
    /// Adds a child by its task and its line.
    pub fn add(&mut self, task: Uuid, line: ReportLine) {
        let failed = line.outcome == ItemOutcome::Failed;
        if failed { &mut self.failed } else { &mut self.others }.push(task);
        self.lines.push(line);
    }

    /// How many ended with this outcome.
    pub fn count(&self, outcome: ItemOutcome) -> usize {
        self.lines.iter().filter(|line| line.outcome == outcome).count()
    }
}
