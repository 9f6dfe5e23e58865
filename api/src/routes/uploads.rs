//! Uploading images.

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue},
    response::Response,
};
use safelight_domain::{Scope, Visibility};
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::{
    registry::{ApiRoutes, RouteAccess},
    task_responses::{created, wait_or_keep},
};
use crate::{
    auth::Caller,
    http::{
        draining::Draining,
        extract::Params,
        problem::Problem,
        responses::{ImageBytes, problem_responses},
    },
    limits::Counted,
    routes::documents::TaskDocument,
    state::ApiState,
    uploads::AcceptedUpload,
};

problem_responses! {
    UploadProblems: InvalidRequest, InvalidQuery, InvalidHeader, InvalidMultipart, InvalidField,
        InvalidIdempotencyKey, InvalidDigest, UnsupportedDigest, DigestMismatch, EmptyBody,
        BrokenBody, UploadTimeout, KeyInFlight, UploadTooLarge, UnsupportedMediaType, KeyReused,
        OverQuota, RateLimited, TooManyOwnUploads, TooManyUploads, TooManyJobs, DatabaseUnavailable,
        BlobsUnavailable, StorageFull;
}

/// Marks the answer to a repeated upload: nothing new was accepted.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The route for uploads.
pub fn routes() -> ApiRoutes {
    let access =
        RouteAccess::scopes(&[Scope::Upload]).counted(&[Counted::Requests, Counted::Uploads]);
    ApiRoutes::new().route(access, routes!(upload))
}

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
/// The body is the image itself or `multipart/form-data`. The server detects the format from the first bytes
/// of the image, whatever its `Content-Type`. A 202 response means that the image is durably stored; the task
/// reports when its renditions are ready.
#[utoipa::path(
    post, path = "/v1/images", operation_id = "upload_image", tag = "uploads",
    params(
        ("title" = Option<String>, Query, description = "Title of a raw upload"),
        ("tags" = Option<Vec<String>>, Query, description = "Tags of a raw upload, repeated or separated by commas"),
        ("visibility" = Option<Visibility>, Query, description = "Who may read the bytes of a raw upload; the server's configuration sets the default"),
        ("content-disposition" = Option<String>, Header, description = "File name of a raw upload", example = "attachment; filename=\"cat.jpg\""),
        ("idempotency-key" = Option<String>, Header, description = "1–255 visible ASCII characters, with or without quotes. The same key with the same payload returns the same task", example = "8e03978e-40d5-43dd-bc93-6894a57f9324"),
        ("content-digest" = Option<String>, Header, description = "The digest of the content (RFC 9530), which the server checks; of a multipart upload, the digest of the whole body or of the file", example = "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:"),
        ("repr-digest" = Option<String>, Header, description = "The same as `content-digest`, since an upload is sent whole and without a content coding"),
        ("prefer" = Option<String>, Header, description = "`wait=N`: wait for the task to end, at most N seconds (0–60)", example = "wait=10"),
    ),
    request_body(content(
        (ImageBytes = "application/octet-stream"),
        (UploadForm = "multipart/form-data"),
    )),
    responses(
        (status = 202, description = "The upload was accepted: the image is durably stored and will be processed", body = TaskDocument, headers(
            ("Location" = String, description = "The URL of the task"),
            ("Retry-After" = u32, description = "Seconds until the client should poll; absent if the task has ended"),
            ("Preference-Applied" = String, description = "`wait=N` if the response waited for the task"),
            ("Idempotent-Replayed" = bool, description = "`true` if the upload was accepted before, under the same `Idempotency-Key`"),
        )),
        UploadProblems,
    ),
)]
pub async fn upload(
    State(state): State<ApiState>,
    caller: Caller,
    draining: Draining,
    params: Params,
    request: Request,
) -> Result<Response, Problem> {
    let mut result = CountedResult("aborted");
    let accepted = state.uploads.accept(&caller, params, request).await;
    let accepted = accepted.inspect_err(|problem| result.0 = problem.code().as_str())?;
    result.0 = if accepted.replayed { "replayed" } else { "accepted" };
    drop(result);
    let AcceptedUpload { task, wait, replayed } = accepted;
    // The upload is safe, also if the wait fails.
    let task = wait_or_keep(&state, &caller, task, wait, &draining).await;
    let mut response = created(&state, &task, wait)?;
    if replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Counts an upload when it is over; one whose client hung up is dropped as `aborted`.
struct CountedResult(&'static str);

impl Drop for CountedResult {
    fn drop(&mut self) {
        metrics::counter!("safelight_uploads_total", "result" => self.0).increment(1);
    }
}
