//! The bytes: originals and renditions, straight from the blob store.

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use safelight_common::{
    blobs::{BlobError, BlobKey},
    domain::{ContentHash, Image, ImageFormat, ImageId, JobKind, Status},
};

use crate::{
    conditional::ETag,
    extract::{Id, parse_id},
    images,
    openapi::{DeliveryProblems, Picture},
    problem::{Problem, ProblemCode},
    state::ApiState,
};

/// What is under a path never changes: an id is never given out twice, and a preset that changes
/// makes renditions anew.
const CACHE_CONTROL: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// A picture is shown, and whatever else might be in it does nothing.
const CONTENT_SECURITY_POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; sandbox");

const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-resource-policy");

/// Characters that stand for themselves in an RFC 8187 value.
const ATTR_CHAR: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Something that can be served.
struct Deliverable {
    key: BlobKey,
    sha256: ContentHash,
    format: ImageFormat,
    bytes: u64,
    disposition: Option<HeaderValue>,
}

/// The original, as it was uploaded.
///
/// HEAD is answered as well.
#[utoipa::path(
    get, path = "/images/{id}", operation_id = "get_original", tag = "delivery",
    params(
        ("id" = ImageId, Path, description = "The image's id"),
        ("if-none-match" = Option<String>, Header, description = "The `ETag` of the bytes that the client has"),
    ),
    responses(
        (status = 200, description = "The bytes", content((Picture = "image/*")), headers(
            ("ETag" = String, description = "The SHA-256 of the bytes"),
            ("Cache-Control" = String, description = "The bytes never change"),
            ("Content-Disposition" = String, description = "`inline`, with the file name if one is known"),
        )),
        (status = 304, description = "The client has the bytes"),
        DeliveryProblems,
    ),
)]
pub async fn original(
    State(state): State<ApiState>,
    Id(id): Id<ImageId>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let image = images::load(&state, id).await?;
    if image.stored_at.is_none() {
        return Err(absent(&state, &image, JobKind::Write).await);
    }
    let deliverable = Deliverable {
        key: BlobKey::Blob(image.sha256),
        sha256: image.sha256,
        format: image.facts.as_ref().map_or(image.format, |facts| facts.format),
        bytes: image.bytes,
        disposition: inline(image.filename.as_deref()),
    };
    deliver(&state, deliverable, &method, &headers).await
}

/// A rendition.
///
/// HEAD is answered as well.
#[utoipa::path(
    get, path = "/images/{id}/{preset}", operation_id = "get_rendition", tag = "delivery",
    params(
        ("id" = ImageId, Path, description = "The image's id"),
        ("preset" = String, Path, description = "The preset's name", example = "small"),
        ("if-none-match" = Option<String>, Header, description = "The `ETag` of the bytes that the client has"),
    ),
    responses(
        (status = 200, description = "The bytes", content((Picture = "image/*")), headers(
            ("ETag" = String, description = "The SHA-256 of the bytes"),
            ("Cache-Control" = String, description = "The bytes never change"),
        )),
        (status = 304, description = "The client has the bytes"),
        DeliveryProblems,
    ),
)]
pub async fn rendition(
    State(state): State<ApiState>,
    Path((id, preset)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = parse_id::<ImageId>(&id)?;
    if !state.presets.has(&preset) {
        return Err(no_such_preset(&state, &preset));
    }
    let image = images::load(&state, id).await?;
    let Some(made) = state.presets.rendition(&image, &preset) else {
        return Err(absent(&state, &image, JobKind::Thumbnail).await);
    };
    let deliverable = Deliverable {
        key: BlobKey::rendition(image.sha256, made),
        sha256: made.sha256,
        format: made.format,
        bytes: made.bytes,
        disposition: None,
    };
    deliver(&state, deliverable, &method, &headers).await
}

fn no_such_preset(state: &ApiState, preset: &str) -> Problem {
    let names: Vec<_> = state.presets.names().collect();
    let preset = preset.escape_debug();
    Problem::new(ProblemCode::PresetNotFound, format!("There is no preset `{preset}`."))
        .hint(format!("the presets are: {}", names.join(", ")))
        .with("presets", names)
}

/// Why an image has not (yet) what a job of `kind` makes.
async fn absent(state: &ApiState, image: &Image, kind: JobKind) -> Problem {
    let task = match state.services.store.task_of_image(image.id).await {
        Ok(task) => task,
        Err(error) => return error.into(),
    };
    let job = task.as_ref().and_then(|task| task.jobs.iter().find(|job| job.kind == kind));
    match job.map(|job| job.status) {
        Some(Status::Queued | Status::Running) => {
            Problem::new(ProblemCode::ImageNotReady, "The image is still being processed.")
        }
        Some(Status::Failed) => {
            let failure = job.and_then(|job| job.error.as_ref());
            let code = failure.map_or("unknown", |failure| failure.code.as_str());
            let message = failure.map_or("no reason was kept", |failure| &failure.message);
            Problem::new(ProblemCode::ImageFailed, format!("Processing failed: {message}."))
                .with("reason", code)
        }
        Some(Status::Cancelled) => {
            Problem::new(ProblemCode::ImageFailed, "Processing was cancelled.")
                .with("reason", Status::Cancelled.as_str())
        }
        Some(Status::Succeeded) | None => Problem::new(
            ProblemCode::RenditionNotMade,
            "The image was processed before this was configured.",
        )
        .hint("a backfill makes renditions of stored images"),
    }
}

/// 304 if the client has it, else the bytes as they come out of the store.
async fn deliver(
    state: &ApiState,
    deliverable: Deliverable,
    method: &Method,
    request: &HeaderMap,
) -> Result<Response, Problem> {
    let Deliverable { key, sha256, format, bytes, disposition } = deliverable;
    let tag = ETag::of(sha256);
    let mut response = if tag.is_known_to(request) {
        StatusCode::NOT_MODIFIED.into_response()
    } else if method == Method::HEAD {
        sized(Body::empty(), format, bytes)
    } else {
        metrics::counter!("safelight_blob_reads_total", "source" => "store").increment(1);
        let body = match state.services.blobs.get(&key).await {
            // The database says that it is there, and how large it is. Never to be cached.
            Err(BlobError::NotFound) => return Err(damaged(&key, "missing")),
            Ok(body) if body.bytes != bytes => return Err(damaged(&key, "of the wrong size")),
            body => body?,
        };
        sized(Body::from_stream(body.stream), format, body.bytes)
    };
    let headers = response.headers_mut();
    headers.extend(tag.value().map(|tag| (header::ETAG, tag)));
    headers.insert(header::CACHE_CONTROL, CACHE_CONTROL);
    headers.insert(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY);
    headers.insert(CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
    headers.extend(disposition.map(|value| (header::CONTENT_DISPOSITION, value)));
    Ok(response)
}

fn damaged(key: &BlobKey, how: &str) -> Problem {
    tracing::error!(path = %key.path(), "a blob is {how}");
    Problem::new(ProblemCode::BlobDamaged, format!("The stored bytes are {how}."))
}

fn sized(body: Body, format: ImageFormat, bytes: u64) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    response
}

/// `inline`, with the name to save under: for old clients in ASCII, for others as RFC 8187 says.
fn inline(filename: Option<&str>) -> Option<HeaderValue> {
    let Some(name) = filename else { return Some(HeaderValue::from_static("inline")) };
    let plain = |c: char| if matches!(c, ' '..='~') && !"\"\\%".contains(c) { c } else { '_' };
    let ascii: String = name.chars().map(plain).collect();
    let encoded = utf8_percent_encode(name, ATTR_CHAR);
    HeaderValue::from_str(&format!("inline; filename=\"{ascii}\"; filename*=UTF-8''{encoded}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_cannot_break_out_of_their_header() {
        let value = inline(Some("a\"; x=\\\u{e9}.jpg")).expect("a header value");
        assert_eq!(
            value,
            "inline; filename=\"a_; x=__.jpg\"; filename*=UTF-8''a%22%3B%20x%3D%5C%C3%A9.jpg"
        );
        assert_eq!(inline(None).expect("inline"), "inline");
    }
}
