//! The documents that clients see, made from what the store knows.

use std::collections::BTreeMap;

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use chrono::{DateTime, Utc};
use safelight_domain::{
    Backfill, ContentHash, ErrorCode, Failure, Image, ImageFormat, ImageId, Job, JobId, JobKind,
    Lane, Owner, Placeholder, Progress, Receipt, RemovedRendition, Rendition, Status, Task, TaskId,
    TaskKind, Visibility,
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    backfills::document::BackfillDocument, conditional::ETag, problem::Problem,
    state::CurrentPresets,
};

/// What a client polls.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Task)]
pub struct TaskDocument {
    /// Its id.
    pub id: TaskId,
    /// What it is for.
    pub kind: TaskKind,
    /// Who waits for it.
    pub lane: Lane,
    /// Where it stands.
    pub status: Status,
    /// Whose it is.
    #[schema(value_type = String)]
    pub owner: Owner,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Counts over its jobs.
    pub progress: ProgressDocument,
    /// Its jobs, in the order they were made; none of a backfill, whose images have tasks of their own.
    pub jobs: Vec<JobDocument>,
    /// The image of an upload, that lacks renditions, or that is deleted.
    pub image: Option<ImageDocument>,
    /// How a backfill stands; only of a backfill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backfill: Option<BackfillDocument>,
    /// What is removed; only of a deletion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<ReceiptDocument>,
    /// Why it failed: the first failed job's error.
    pub error: Option<ErrorDocument>,
}

/// How many of a task's jobs have ended, and how; of a backfill, how many images.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Progress)]
pub struct ProgressDocument {
    /// All of them.
    pub total: u32,
    /// Done.
    pub succeeded: u32,
    /// Failed for good.
    pub failed: u32,
    /// Needed nothing; only of a backfill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<u32>,
}

/// One unit of work.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub struct JobDocument {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// Where it stands.
    pub status: Status,
    /// Attempts begun; 0 before the first.
    pub attempt: u32,
    /// Attempts at most.
    pub max_attempts: u32,
    /// When the next attempt is due, after a failed one.
    pub retry_at: Option<DateTime<Utc>>,
    /// The last failure.
    pub error: Option<ErrorDocument>,
}

/// Why a job failed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Failure)]
pub struct ErrorDocument {
    /// The stable name of the reason.
    pub code: ErrorCode,
    /// What happened.
    pub message: String,
    /// Whether another attempt could end differently.
    pub retryable: bool,
}

/// An image.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Image)]
pub struct ImageDocument {
    /// Its id.
    pub id: ImageId,
    /// Whose it is.
    #[schema(value_type = String)]
    pub owner: Owner,
    /// Who may read its bytes.
    pub visibility: Visibility,
    /// Where the original is served.
    #[schema(example = "/images/0193c2a4-7d1e-7c3a-9d52-3f1f5a3c9b10")]
    pub url: String,
    /// Pixels across as stored; null until the write job is done.
    pub width: Option<u32>,
    /// Pixels down as stored; null until the write job is done.
    pub height: Option<u32>,
    /// The format; until the write job is done, as the first bytes announce it.
    pub format: ImageFormat,
    /// The size of the original, in bytes.
    pub bytes: u64,
    /// The SHA-256 of the original, in hex; null of a deleted image.
    pub sha256: Option<String>,
    /// The client's title.
    pub title: Option<String>,
    /// The client's tags.
    pub tags: Vec<String>,
    /// The client's name for the file.
    pub filename: Option<String>,
    /// EXIF orientation, 1–8; null until the write job is done.
    pub orientation: Option<u8>,
    /// When the picture was taken, by the camera's clock.
    pub taken_at: Option<DateTime<Utc>>,
    /// Where it was taken; only if the operator keeps positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gps: Option<GpsDocument>,
    /// When the upload was accepted.
    pub created_at: DateTime<Utc>,
    /// The renditions that there are, by preset.
    pub renditions: BTreeMap<String, RenditionDocument>,
    /// What to show until a picture is loaded; null until the thumbnail job is done.
    pub placeholder: Option<PlaceholderDocument>,
}

/// A place on Earth, in degrees (WGS 84).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Gps)]
pub struct GpsDocument {
    /// North positive.
    pub latitude: f64,
    /// East positive.
    pub longitude: f64,
}

/// A picture derived from an image.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Rendition)]
pub struct RenditionDocument {
    /// Where it is served.
    #[schema(example = "/images/0193c2a4-7d1e-7c3a-9d52-3f1f5a3c9b10/small")]
    pub url: String,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Its format.
    pub format: ImageFormat,
    /// Its size in bytes.
    pub bytes: u64,
}

/// A stand-in for a picture that is still being loaded. Equal uploads have the same.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Placeholder)]
pub struct PlaceholderDocument {
    /// The upright picture, very blurred: a `ThumbHash` (github.com/evanw/thumbhash) in base64.
    #[schema(example = "1QcSHQRnh493V4dIh4eXh1h4kJUI", content_encoding = "base64")]
    pub thumbhash: String,
    /// One colour for all of it, as CSS writes it (sRGB).
    #[schema(example = "#6a7d5f", pattern = "^#[0-9a-f]{6}$")]
    pub dominant_color: String,
}

/// What a deletion removes of its image. Bytes that somebody else has stored as well stay theirs; nothing
/// here tells of that.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Receipt)]
pub struct ReceiptDocument {
    /// The size of the original, in bytes.
    pub original_bytes: u64,
    /// Its renditions.
    pub renditions: Vec<RemovedRenditionDocument>,
    /// The size of the original and its renditions, in bytes.
    pub bytes: u64,
    /// How many caching proxies have confirmed that they have it no more; null until all have.
    pub proxies: Option<u32>,
    /// When everything was removed; null until then.
    pub removed_at: Option<DateTime<Utc>>,
}

/// A rendition in a receipt.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RemovedRendition)]
pub struct RemovedRenditionDocument {
    /// The preset's name.
    pub preset: String,
    /// Its format.
    pub format: ImageFormat,
    /// Its size, in bytes.
    pub bytes: u64,
}

impl ReceiptDocument {
    fn new(task: &Task, receipt: &Receipt) -> Self {
        let renditions = receipt.renditions.iter();
        Self {
            original_bytes: receipt.bytes,
            bytes: receipt.bytes + renditions.clone().map(|made| made.bytes).sum::<u64>(),
            renditions: renditions.map(RemovedRenditionDocument::new).collect(),
            proxies: receipt.proxies,
            removed_at: task.finished_at.filter(|_| task.status == Status::Succeeded),
        }
    }
}

impl RemovedRenditionDocument {
    fn new(made: &RemovedRendition) -> Self {
        Self { preset: made.preset.clone(), format: made.format, bytes: made.bytes }
    }
}

impl TaskDocument {
    /// What a client sees of `task`.
    pub fn new(task: &Task, presets: &CurrentPresets) -> Self {
        let failed = task.jobs.iter().find(|job| job.status == Status::Failed);
        let incomplete = task.backfill.as_deref().map(incomplete);
        let error = incomplete.as_ref().or(failed.and_then(|job| job.error.as_ref()));
        Self {
            id: task.id,
            kind: task.kind,
            lane: task.lane,
            status: task.status,
            owner: task.owner.clone(),
            created_at: task.created_at,
            updated_at: task.updated_at,
            finished_at: task.finished_at,
            progress: ProgressDocument::new(task),
            jobs: task.jobs.iter().map(JobDocument::new).collect(),
            image: task.image.as_ref().map(|image| ImageDocument::new(image, presets)),
            backfill: task.backfill.as_deref().map(BackfillDocument::new),
            receipt: task.receipt.as_deref().map(|receipt| ReceiptDocument::new(task, receipt)),
            error: error.filter(|_| task.status == Status::Failed).map(ErrorDocument::new),
        }
    }
}

/// What a backfill that failed says of it.
fn incomplete(backfill: &Backfill) -> Failure {
    let failed = backfill.failed + backfill.refused;
    let looked_at = backfill.walked();
    let message = match &backfill.problem {
        Some(problem) => format!("it broke off after {looked_at} images: {problem}"),
        None => format!("{failed} of {looked_at} images failed; its report says which, and why"),
    };
    Failure::new(ErrorCode::BackfillIncomplete, message)
}

impl ProgressDocument {
    fn new(task: &Task) -> Self {
        let Some(backfill) = &task.backfill else {
            let Progress { total, succeeded, failed, .. } = task.progress;
            return Self { total, succeeded, failed, skipped: None };
        };
        let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let walked = backfill.walked();
        Self {
            total: count(backfill.expected.map_or(walked, |expected| expected.max(walked))),
            succeeded: count(backfill.succeeded),
            failed: count(backfill.failed + backfill.refused),
            skipped: Some(count(backfill.skipped_total())),
        }
    }
}

impl JobDocument {
    fn new(job: &Job) -> Self {
        Self {
            id: job.id,
            kind: job.kind,
            status: job.status,
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            retry_at: job.retry_at,
            error: job.error.as_ref().map(ErrorDocument::new),
        }
    }
}

impl ErrorDocument {
    fn new(failure: &Failure) -> Self {
        Self {
            code: failure.code,
            message: failure.message.clone(),
            retryable: failure.code.is_retryable(),
        }
    }
}

impl ImageDocument {
    /// What a client sees of `image`.
    pub fn new(image: &Image, presets: &CurrentPresets) -> Self {
        let facts = image.facts.as_ref();
        let renditions = presets.renditions(image);
        let placeholder = image.placeholder.as_ref().filter(|_| !image.deleted);
        Self {
            id: image.id,
            owner: image.owner.clone(),
            visibility: image.visibility,
            url: format!("/images/{}", image.id),
            width: facts.map(|facts| facts.width),
            height: facts.map(|facts| facts.height),
            format: facts.map_or(image.format, |facts| facts.format),
            bytes: image.bytes,
            sha256: (!image.deleted).then(|| image.sha256.to_string()),
            title: image.labels.title.clone(),
            tags: image.labels.tags.clone(),
            filename: image.labels.filename.clone(),
            orientation: facts.map(|facts| facts.orientation),
            taken_at: facts.and_then(|facts| facts.taken_at).map(|time| time.and_utc()),
            gps: facts
                .and_then(|facts| facts.gps)
                .map(|gps| GpsDocument { latitude: gps.latitude, longitude: gps.longitude }),
            created_at: image.created_at,
            renditions: renditions
                .map(|(preset, made)| {
                    (preset.to_owned(), RenditionDocument::new(image.id, preset, made))
                })
                .collect(),
            placeholder: placeholder.map(PlaceholderDocument::new),
        }
    }
}

impl PlaceholderDocument {
    fn new(placeholder: &Placeholder) -> Self {
        Self {
            thumbhash: BASE64_STANDARD.encode(&placeholder.thumbhash),
            dominant_color: placeholder.css_color(),
        }
    }
}

impl RenditionDocument {
    fn new(image: ImageId, preset: &str, rendition: &Rendition) -> Self {
        Self {
            url: format!("/images/{image}/{preset}"),
            width: rendition.width,
            height: rendition.height,
            format: rendition.format,
            bytes: rendition.bytes,
        }
    }
}

/// A document as an answer to a conditional GET: 200 with its tag, or 304.
pub fn conditional(document: &impl Serialize, request: &HeaderMap) -> Result<Response, Problem> {
    let body = serde_json::to_vec(document).map_err(|error| Problem::internal(&error))?;
    let tag = ETag::of(ContentHash::of(&body));
    let mut response = if tag.is_known_to(request) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let json = HeaderValue::from_static("application/json");
        ([(header::CONTENT_TYPE, json)], Bytes::from(body)).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.extend(tag.value().map(|tag| (header::ETAG, tag)));
    Ok(response)
}
