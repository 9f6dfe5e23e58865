//! How a backfill stands, for clients.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use safelight_domain::{
    Backfill, BackfillKind, BackfillState, GcPhase, GcProgress, ImageFormat, TakeBack, TaskId,
    Visibility,
};
use serde::Serialize;
use utoipa::ToSchema;

/// The state of a backfill.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Backfill)]
pub struct BackfillDocument {
    /// What it does.
    pub kind: BackfillKind,
    /// The stage that it has reached.
    pub state: BackfillState,
    /// Whether the backfill is paused.
    pub paused: bool,
    /// Whether it only counts images and changes nothing.
    pub dry_run: bool,
    /// Counts of images; for an import, of the entries in its source; for `gc`, of stored objects.
    pub images: BackfillImages,
    /// Skipped images, by reason: `up_to_date`, `failed_before`, `duplicate`, `not_an_image`, `not_a_file`;
    /// for `gc`: `in_use`, `too_young`, `unknown_name`; with `take_back`: `stored_again`.
    pub skipped: BTreeMap<String, u64>,
    /// The request that started it.
    pub request: BackfillRequested,
    /// `gc`: what is stored and what would go, counted before anything is moved; null for other backfills.
    pub survey: Option<SurveyDocument>,
    /// Why the backfill stopped early; null if it did not.
    pub problem: Option<String>,
    /// The URL of its report.
    pub report: String,
}

/// Counts of images. At the end, `total` = `succeeded` + `failed` + `skipped` + `cancelled`, unless images
/// were removed during the backfill, or it was cancelled before it had examined all of them.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackfillImages {
    /// All images to examine; null until they are counted.
    pub total: Option<u64>,
    /// Images examined so far.
    pub walked: u64,
    /// Images that need work; a dry run only counts them.
    pub planned: u64,
    /// Images that need no work.
    pub skipped: u64,
    /// The number that succeeded.
    pub succeeded: u64,
    /// Images that failed permanently: in this backfill or, for `verify`, before it; and entries that could
    /// not be imported.
    pub failed: u64,
    /// Cancelled images.
    pub cancelled: u64,
}

/// What a garbage collection counts before it moves anything to the quarantine.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BackfillSurvey)]
pub struct SurveyDocument {
    /// Whether everything is counted.
    pub is_complete: bool,
    /// Stored originals.
    pub originals: u64,
    /// The bytes of stored originals.
    pub original_bytes: u64,
    /// Originals that nothing refers to, and that are old enough to go.
    pub unreferenced_originals: u64,
    /// Their bytes.
    pub unreferenced_bytes: u64,
    /// Renditions that nothing refers to, and that are old enough to go.
    pub unreferenced_renditions: u64,
    /// Of a dry run: why the same collection would be refused without it; null if it would not.
    pub refusal: Option<String>,
}

/// The request that started a backfill.
#[allow(clippy::struct_excessive_bools)] // independent options of a request
#[derive(Debug, Serialize, ToSchema)]
pub struct BackfillRequested {
    /// Only these presets; if empty, all presets.
    pub presets: Vec<String>,
    /// Whether existing renditions are made again.
    pub all: bool,
    /// Only images accepted at this time or later.
    pub created_after: Option<DateTime<Utc>>,
    /// Only originals of this format.
    pub format: Option<ImageFormat>,
    /// The source of an import.
    pub source: Option<String>,
    /// Who may read the bytes of imported images.
    pub visibility: Option<Visibility>,
    /// The maximum number of images started per second.
    pub rate: Option<f64>,
    /// The maximum number of images in progress.
    pub concurrency: Option<u32>,
    /// Whether images that failed permanently before are included.
    pub retry_failed: bool,
    /// Whether garbage is collected although the database may know less than it should.
    pub force: bool,
    /// Whether objects are moved back from the quarantine instead.
    pub take_back: bool,
    /// The collection whose objects are moved back; null for all.
    pub take_back_of: Option<TaskId>,
}

impl BackfillDocument {
    /// What a client sees of `backfill`.
    pub fn new(backfill: &Backfill) -> Self {
        let spec = &backfill.spec;
        Self {
            kind: spec.kind,
            state: backfill.state,
            paused: backfill.paused,
            dry_run: spec.dry_run,
            images: BackfillImages {
                total: backfill.expected,
                walked: backfill.walked(),
                planned: backfill.planned,
                skipped: backfill.skipped_total(),
                succeeded: backfill.succeeded,
                failed: backfill.failed + backfill.refused,
                cancelled: backfill.cancelled_images,
            },
            skipped: backfill.skipped.clone(),
            request: BackfillRequested {
                presets: spec.presets.clone(),
                all: spec.all,
                created_after: spec.created_after,
                format: spec.format,
                source: spec.source.clone(),
                visibility: spec.visibility,
                rate: spec.rate,
                concurrency: spec.concurrency,
                retry_failed: spec.retry_failed,
                force: spec.force,
                take_back: spec.take_back.is_some(),
                take_back_of: match spec.take_back {
                    Some(TakeBack::Run(run)) => Some(run),
                    Some(TakeBack::All) | None => None,
                },
            },
            survey: SurveyDocument::new(backfill),
            problem: backfill.problem.clone(),
            report: format!("/v1/tasks/{}/report", backfill.id),
        }
    }
}

impl SurveyDocument {
    fn new(backfill: &Backfill) -> Option<Self> {
        if backfill.spec.kind != BackfillKind::Gc || backfill.spec.take_back.is_some() {
            return None;
        }
        let GcProgress { phase, survey, .. } = GcProgress::of_cursor(backfill.cursor.as_deref());
        Some(Self {
            is_complete: phase == GcPhase::Collect,
            originals: survey.originals.objects,
            original_bytes: survey.originals.bytes,
            unreferenced_originals: survey.unreferenced.objects,
            unreferenced_bytes: survey.unreferenced.bytes,
            unreferenced_renditions: survey.unreferenced_renditions,
            refusal: survey.refusal,
        })
    }
}
