//! Receiving uploads.
//!
//! Everything that can be refused without the body is refused before it is read: headers, size,
//! the number of uploads in flight. The body then streams through [`Intake`] to the blob store;
//! [`commit`] records it.

pub mod backlog;
pub mod commit;
pub mod digest;
pub mod idempotency;
pub mod labels;
pub mod multipart;
pub mod permits;

use crate::http::body;
use labels as form;
use permits as places;

use std::time::Duration;

use axum::{
    Extension, Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use safelight_blobs::Intake;
use safelight_domain::{ContentHash, ImageId, Owner, Task, Visibility};
use safelight_store::IdempotencyKey;
use tracing::Instrument;
use utoipa::ToSchema;

use crate::{
    access::Caller,
    extract::Params,
    limits,
    openapi::{Picture, UploadProblems},
    prefer::Wait,
    problem::{Problem, ProblemCode},
    state::{ApiState, Draining},
    tasks::{add_progress_headers, document::TaskDocument, reload, wait_until_final},
};
use body::{BodyLimits, BodyReader, too_large};
use commit::Received;
use form::Form;
use idempotency::{HeldKey, Reservation};
use places::{Full, Place};

/// The parts of a multipart upload. For the API's description only.
#[derive(ToSchema)]
#[allow(dead_code)] // read by the derive alone
pub struct UploadForm {
    /// The picture.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// A title, 500 characters at most.
    title: Option<String>,
    /// Tags, separated by commas or in a part each; 32 at most of 64 characters at most.
    tags: Option<Vec<String>>,
    /// Who may read the bytes: `public` or `private`.
    visibility: Option<Visibility>,
}

/// Upload an image.
///
/// The body is the picture itself, of whatever `Content-Type` (its first bytes tell the format), or
/// `multipart/form-data`. Once 202 is answered the image is safe; the task tells when its
/// renditions are made.
#[utoipa::path(
    post, path = "/v1/images", operation_id = "upload_image", tag = "uploads",
    params(
        ("title" = Option<String>, Query, description = "Title of a raw upload"),
        ("tags" = Option<Vec<String>>, Query, description = "Tags of a raw upload, repeated or separated by commas"),
        ("visibility" = Option<Visibility>, Query, description = "Who may read the bytes of a raw upload; as the server is configured unless said"),
        ("content-disposition" = Option<String>, Header, description = "File name of a raw upload", example = "attachment; filename=\"cat.jpg\""),
        ("idempotency-key" = Option<String>, Header, description = "1–255 visible ASCII characters. The same key with the same payload gives the same task again", example = "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("content-digest" = Option<String>, Header, description = "The content must have this digest (RFC 9530); for multipart the whole body or the file", example = "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:"),
        ("prefer" = Option<String>, Header, description = "`wait=N`: hold the answer until the task is final, at most N seconds (0–60)", example = "wait=10"),
    ),
    request_body(content(
        (Picture = "application/octet-stream"),
        (UploadForm = "multipart/form-data"),
    )),
    responses(
        (status = 202, description = "Accepted: the image is durably stored and will be processed", body = TaskDocument, headers(
            ("Location" = String, description = "The task"),
            ("Retry-After" = u32, description = "Seconds until polling makes sense; absent if the task is final already"),
            ("Preference-Applied" = String, description = "`wait=N` if the answer was held on request"),
        )),
        UploadProblems,
    ),
)]
pub async fn upload(
    State(state): State<ApiState>,
    caller: Caller,
    draining: Option<Extension<Draining>>,
    params: Params,
    request: Request,
) -> Result<Response, Problem> {
    let mut tally = Tally("aborted");
    let outcome = accept(&state, &caller, params, request).await;
    let (task, wait, replayed) = match outcome {
        Ok(accepted) => accepted,
        Err(problem) => {
            tally.0 = problem.code().as_str();
            return Err(problem);
        }
    };
    tally.0 = if replayed { "replayed" } else { "accepted" };
    drop(tally);
    answer(&state, &caller, task, wait, draining).await
}

/// Counts an upload when it is over; one whose client hung up is dropped as `aborted`.
struct Tally(&'static str);

impl Drop for Tally {
    fn drop(&mut self) {
        metrics::counter!("safelight_uploads_total", "result" => self.0).increment(1);
    }
}

/// What a request asks for beside its bytes.
struct Terms {
    /// Whose the image will be.
    owner: Owner,
    /// The fields of a raw upload; `None` for multipart.
    raw: Option<Form>,
    key: Option<IdempotencyKey>,
    digest: Option<ContentHash>,
    wait: Option<Wait>,
}

/// Receives the upload: the task, how long the client wants to wait for its end, and whether it
/// is one that was accepted before.
async fn accept(
    state: &ApiState,
    caller: &Caller,
    params: Params,
    request: Request,
) -> Result<(Task, Option<Wait>, bool), Problem> {
    let config = &state.services.config;
    let (parts, body) = request.into_parts();
    let multipart = is_multipart(&parts.headers);
    let overhead = if multipart { multipart::OVERHEAD_BYTES } else { 0 };
    let limits = BodyLimits {
        bytes: config.max_upload_bytes.saturating_add(overhead),
        idle: Duration::from_millis(config.upload_idle_timeout_ms),
        bytes_per_second: config.upload_min_bytes_per_second,
        lingering: state.lingering.clone(),
    };
    let limit = limits.bytes;
    let hash_whole = multipart && parts.headers.contains_key("content-digest");
    // From here on a refusal leaves the rest of the body to the reader's end.
    let body = BodyReader::new(body, &parts.headers, limits, hash_whole);
    let terms = terms(caller.owner.clone(), &parts.headers, params, multipart)?;
    let declared = declared_bytes(&parts.headers);
    if declared.is_some_and(|declared| declared > limit) {
        return Err(too_large(config.max_upload_bytes));
    }
    // Of a multipart body the picture is a part.
    let picture_bytes = declared.filter(|_| !multipart);
    let place = take_place(state, caller)?;
    state.backlog.admit(&state.services.store).await?;
    let hold = Duration::from_millis(config.idempotency_hold_ms);
    let reservation = match &terms.key {
        Some(key) => Some(idempotency::reserve(&state.services.store, key, hold).await?),
        None => None,
    };
    match reservation {
        Some(Reservation::Replay { task, fingerprint }) => {
            let intake = Intake::hashing(config.max_upload_bytes);
            let (intake, form, expected) = receive(&parts.headers, &body, intake, &terms).await?;
            let content = intake.end().await?.content;
            if let Some(problem) = commit::refusal(&content, expected) {
                return Err(problem);
            }
            if form.fingerprint(content.sha256) != fingerprint {
                return Err(idempotency::reused());
            }
            Ok((reload(state, task).await?, terms.wait, true))
        }
        Some(Reservation::Held(key)) => {
            limits::admit(state, &terms.owner, picture_bytes).await?;
            let task = fresh(state, &parts.headers, &body, &terms, Some(key), place).await?;
            Ok((task, terms.wait, false))
        }
        None => {
            limits::admit(state, &terms.owner, picture_bytes).await?;
            let task = fresh(state, &parts.headers, &body, &terms, None, place).await?;
            Ok((task, terms.wait, false))
        }
    }
}

/// Leaves a refused request's body unread: the rest is read and thrown away in the background, within
/// bounds, so that a client which is still sending gets its answer.
pub fn leave_unread(state: &ApiState, headers: &HeaderMap, body: Body) {
    let config = &state.services.config;
    let limits = BodyLimits {
        bytes: u64::MAX,
        idle: Duration::from_millis(config.upload_idle_timeout_ms),
        bytes_per_second: config.upload_min_bytes_per_second,
        lingering: state.lingering.clone(),
    };
    drop(BodyReader::new(body, headers, limits, false));
}

/// Receives an upload that was not accepted before.
async fn fresh(
    state: &ApiState,
    headers: &HeaderMap,
    body: &BodyReader,
    terms: &Terms,
    key: Option<HeldKey>,
    place: Place,
) -> Result<Task, Problem> {
    let image = ImageId::new();
    let limit = state.services.config.max_upload_bytes;
    let intake = Intake::staging(state.services.blobs.clone(), image, limit);
    let (intake, form, expected) = receive(headers, body, intake, terms).await?;
    safelight_fail_points::hit("upload.received").await;
    let owner = terms.owner.clone();
    let received = Received { image, owner, intake, form, expected, key, place };
    let commit = commit::commit(state.clone(), received).in_current_span();
    tokio::spawn(commit).await.map_err(|error| Problem::internal(&error))?
}

/// Reads the body to its end. The hash that comes back is still to be checked against the file's.
async fn receive(
    headers: &HeaderMap,
    body: &BodyReader,
    mut intake: Intake,
    terms: &Terms,
) -> Result<(Intake, Form, Option<ContentHash>), Problem> {
    let form = match (&terms.raw, headers.get(header::CONTENT_TYPE)) {
        (None, Some(content_type)) => multipart::receive(body, content_type, &mut intake).await?,
        (raw, _) => {
            while let Some(chunk) = body.chunk().await? {
                intake.write(&chunk).await?;
            }
            raw.clone().unwrap_or_default()
        }
    };
    // What follows the last boundary belongs to the content too.
    let whole = body.finish().await?;
    let expected = terms.digest.filter(|digest| whole != Some(*digest));
    Ok((intake, form, expected))
}

/// Reads all that stands beside the body.
fn terms(
    owner: Owner,
    headers: &HeaderMap,
    mut params: Params,
    multipart: bool,
) -> Result<Terms, Problem> {
    let raw = if multipart {
        None
    } else {
        let mut form = Form::default();
        if let Some(visibility) = params.take("visibility")? {
            form.set_visibility(&visibility)?;
        }
        if let Some(title) = params.take("title")? {
            form.set_title(&title)?;
        }
        for tags in params.take_all("tags") {
            form.add_tags(&tags)?;
        }
        if let Some(name) = form::disposition_filename(headers) {
            form.set_filename(&name);
        }
        Some(form)
    };
    params.finish()?;
    plain_encoding(headers)?;
    Ok(Terms {
        raw,
        key: idempotency::from_headers(headers, &owner)?,
        owner,
        digest: digest::from_headers(headers)?,
        wait: Wait::from_headers(headers)?,
    })
}

fn is_multipart(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("multipart/form-data")
}

/// A compressed body would be stored as it is, and be no picture.
fn plain_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let plain = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    if plain {
        return Ok(());
    }
    Err(Problem::new(
        ProblemCode::UnsupportedMediaType,
        "Content codings are not undone here; send the picture as it is.",
    ))
}

fn declared_bytes(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A place among the uploads in flight.
fn take_place(state: &ApiState, caller: &Caller) -> Result<Place, Problem> {
    let share = limits::uploads_at_once(&state.services.config, caller);
    state.uploads.take(&caller.owner, share).map_err(|full| match full {
        Full::All => Problem::new(
            ProblemCode::TooManyUploads,
            "This node is receiving as many uploads as it can; the body was not read.",
        ),
        Full::Share => Problem::new(
            ProblemCode::TooManyOwnUploads,
            format!("This node is receiving {share} uploads of this owner; the body was not read."),
        )
        .hint("send fewer at once; `GET /v1/limits` says how many"),
    })
}

/// 202 with the task, at once or when it is final.
async fn answer(
    state: &ApiState,
    caller: &Caller,
    task: Task,
    wait: Option<Wait>,
    draining: Option<Extension<Draining>>,
) -> Result<Response, Problem> {
    let task = match wait {
        // The upload is safe: a wait that cannot be had is no reason to refuse it now.
        Some(wait) => match wait_until_final(state, caller, task.clone(), wait, draining).await {
            Ok(task) => task,
            Err(_) => task,
        },
        None => task,
    };
    let location = HeaderValue::from_str(&format!("/v1/tasks/{}", task.id))
        .map_err(|error| Problem::internal(&error))?;
    let document = Json(TaskDocument::new(&task, &state.presets));
    let mut response =
        (StatusCode::ACCEPTED, [(header::LOCATION, location)], document).into_response();
    add_progress_headers(&mut response, &task, wait);
    Ok(response)
}
