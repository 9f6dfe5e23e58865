//! How a backfill stands, for clients.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use safelight_domain::{Backfill, BackfillKind, BackfillState, ImageFormat, Visibility};
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
    /// for `gc`: `in_use`, `too_young`, `unknown_name`.
    pub skipped: BTreeMap<String, u64>,
    /// The request that started it.
    pub request: BackfillRequested,
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

/// The request that started a backfill.
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
            },
            problem: backfill.problem.clone(),
            report: format!("/v1/tasks/{}/report", backfill.id),
        }
    }
}
