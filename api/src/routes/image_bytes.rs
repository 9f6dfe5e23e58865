//! The bytes of images: originals and renditions.

use axum::{
    Extension,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, Method, Uri},
    response::Response,
};
use safelight_domain::{ImageId, Scope};
use utoipa_axum::routes;

use super::registry::{ApiRoutes, RouteAccess};
use crate::{
    auth::Client,
    delivery::ReadRequest,
    http::{
        draining::Draining,
        extract::{Id, PathId, parse_id},
        problem::Problem,
        responses::{ImageBytes, problem_responses},
    },
    state::ApiState,
};

problem_responses! {
    DeliveryProblems: InvalidQuery, InvalidHeader, KeyMissing, InvalidKey, ScopeMissing,
        InvalidSignature, SignatureExpired, ImageNotFound, PresetNotFound, RenditionNotMade,
        ImageFailed, ImageCancelled, ImageDeleted, PreconditionFailed, RangeNotSatisfiable, BlobDamaged,
        ImageNotReady, TooManyWaiting, DatabaseUnavailable, BlobsUnavailable;
}

/// The routes for bytes. Most images are public, so delivery checks access itself.
pub fn routes() -> ApiRoutes {
    let access = RouteAccess::public_or(&[Scope::Read]);
    ApiRoutes::new().route(access, routes!(original)).route(access, routes!(rendition))
}

/// The original, as it was uploaded.
///
/// HEAD works too. A request for an original that is not stored yet waits for a while.
#[utoipa::path(
    get, path = "/images/{id}", operation_id = "get_original", tag = "delivery",
    params(
        ("id" = ImageId, Path, description = "The image's id"),
        ("wait" = Option<u32>, Query, description = "Seconds that the request waits while the image is being processed", minimum = 0, maximum = 60),
        ("prefer" = Option<String>, Header, description = "`wait=N`: the same as the parameter `wait`, which takes precedence", example = "wait=10"),
        ("if-match" = Option<String>, Header, description = "Serve the bytes only if they have this `ETag`"),
        ("if-unmodified-since" = Option<String>, Header, description = "Serve the bytes only if they have not changed since this time"),
        ("expires" = Option<i64>, Query, description = "Signed URL: when it expires, in Unix seconds"),
        ("key_id" = Option<String>, Query, description = "Signed URL: the id of its signing key"),
        ("signature" = Option<String>, Query, description = "Signed URL: the signature"),
        ("if-none-match" = Option<String>, Header, description = "The `ETag` of the client's copy"),
        ("if-modified-since" = Option<String>, Header, description = "The `Last-Modified` of the client's copy"),
        ("range" = Option<String>, Header, description = "The requested byte ranges", example = "bytes=0-1023"),
        ("if-range" = Option<String>, Header, description = "The `ETag` or `Last-Modified` of the client's partial copy"),
    ),
    responses(
        (status = 200, description = "The bytes", content((ImageBytes = "image/*")), headers(
            ("ETag" = String, description = "The SHA-256 of the bytes"),
            ("Last-Modified" = String, description = "When the bytes were stored"),
            ("Cache-Control" = String, description = "The bytes never change"),
            ("Repr-Digest" = String, description = "The SHA-256 of all bytes (RFC 9530)"),
            ("Cache-Status" = String, description = "Where the bytes came from (RFC 9211)"),
            ("Content-Disposition" = String, description = "`inline`, with the file name if one is known"),
        )),
        (status = 206, description = "The requested ranges; several ranges as `multipart/byteranges`", content((ImageBytes = "image/*"))),
        (status = 304, description = "The client's copy is current"),
        DeliveryProblems,
    ),
)]
pub async fn original(
    State(state): State<ApiState>,
    Draining(draining): Draining,
    Id(id): Id<ImageId>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    client: Option<Extension<Client>>,
) -> Result<Response, Problem> {
    let (method, uri, headers, draining) = (&method, &uri, &headers, &draining);
    let client = client.as_deref();
    state.delivery.original(ReadRequest { id, method, uri, headers, client, draining }).await
}

/// A rendition.
///
/// HEAD works too. A request for a rendition that is still being processed waits for a while. If the image
/// has no rendition of the preset, the request starts processing it.
#[utoipa::path(
    get, path = "/images/{id}/{preset}", operation_id = "get_rendition", tag = "delivery",
    params(
        ("id" = ImageId, Path, description = "The image's id"),
        ("preset" = String, Path, description = "The preset's name", example = "small"),
        ("v" = Option<String>, Query, description = "The version of the bytes, as the URLs in documents have it: only for caches"),
        ("wait" = Option<u32>, Query, description = "Seconds that the request waits while the image is being processed", minimum = 0, maximum = 60),
        ("expires" = Option<i64>, Query, description = "Signed URL: when it expires, in Unix seconds"),
        ("key_id" = Option<String>, Query, description = "Signed URL: the id of its signing key"),
        ("signature" = Option<String>, Query, description = "Signed URL: the signature"),
        ("accept" = Option<String>, Header, description = "Selects a format if the preset has several", example = "image/avif,image/webp,*/*"),
        ("prefer" = Option<String>, Header, description = "`wait=N`: the same as the parameter `wait`, which takes precedence", example = "wait=10"),
        ("if-match" = Option<String>, Header, description = "Serve the bytes only if they have this `ETag`"),
        ("if-unmodified-since" = Option<String>, Header, description = "Serve the bytes only if they have not changed since this time"),
        ("if-none-match" = Option<String>, Header, description = "The `ETag` of the client's copy"),
        ("if-modified-since" = Option<String>, Header, description = "The `Last-Modified` of the client's copy"),
        ("range" = Option<String>, Header, description = "The requested byte ranges", example = "bytes=0-1023"),
        ("if-range" = Option<String>, Header, description = "The `ETag` or `Last-Modified` of the client's partial copy"),
    ),
    responses(
        (status = 200, description = "The bytes", content((ImageBytes = "image/*")), headers(
            ("ETag" = String, description = "The SHA-256 of the bytes"),
            ("Last-Modified" = String, description = "When the rendition was made"),
            ("Cache-Control" = String, description = "`immutable` if the URL names the version of these bytes, as the URLs in documents do; otherwise a minute"),
            ("Repr-Digest" = String, description = "The SHA-256 of all bytes (RFC 9530)"),
            ("Cache-Status" = String, description = "Where the bytes came from (RFC 9211)"),
            ("Content-Disposition" = String, description = "`inline`, with the file name if one is known"),
            ("Vary" = String, description = "`accept`, if the preset has several formats"),
        )),
        (status = 206, description = "The requested ranges; several ranges as `multipart/byteranges`", content((ImageBytes = "image/*"))),
        (status = 304, description = "The client's copy is current"),
        DeliveryProblems,
    ),
)]
pub async fn rendition(
    State(state): State<ApiState>,
    Draining(draining): Draining,
    path: Result<Path<(String, String)>, PathRejection>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    client: Option<Extension<Client>>,
) -> Result<Response, Problem> {
    let Path((id, preset)) = path.map_err(|_| ImageId::not_found("(unreadable)"))?;
    let id = parse_id::<ImageId>(&id)?;
    let (method, uri, headers, draining) = (&method, &uri, &headers, &draining);
    let client = client.as_deref();
    let request = ReadRequest { id, method, uri, headers, client, draining };
    state.delivery.rendition(request, &preset).await
}
