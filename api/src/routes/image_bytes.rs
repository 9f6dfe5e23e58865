//! The bytes of images: originals and renditions.

use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, Method, Uri},
    response::Response,
};
use safelight_domain::ImageId;
use utoipa_axum::routes;

use super::registry::{Access, ApiRoutes};
use crate::{
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
    ApiRoutes::new()
        .route(Access::PUBLIC, routes!(original))
        .route(Access::PUBLIC, routes!(rendition))
}

/// The original, as it was uploaded.
///
/// HEAD is answered as well. A request for an original that is not stored yet is held for a while.
#[utoipa::path(
    get, path = "/images/{id}", operation_id = "get_original", tag = "delivery",
    params(
        ("id" = ImageId, Path, description = "The image's id"),
        ("wait" = Option<u32>, Query, description = "Seconds to hold the request while the image is being processed", minimum = 0, maximum = 60),
        ("prefer" = Option<String>, Header, description = "`wait=` and seconds: the same as the parameter, which counts for more", example = "wait=10"),
        ("if-match" = Option<String>, Header, description = "The `ETag` of the bytes without which the client wants none"),
        ("if-unmodified-since" = Option<String>, Header, description = "The same by `Last-Modified`"),
        ("expires" = Option<i64>, Query, description = "Of a signed URL: until when it is good, in Unix seconds"),
        ("key_id" = Option<String>, Query, description = "Of a signed URL: the key it was signed with"),
        ("signature" = Option<String>, Query, description = "Of a signed URL: its signature"),
        ("if-none-match" = Option<String>, Header, description = "The `ETag` of the bytes that the client has"),
        ("if-modified-since" = Option<String>, Header, description = "The `Last-Modified` of the bytes that the client has"),
        ("range" = Option<String>, Header, description = "The parts that the client wants", example = "bytes=0-1023"),
        ("if-range" = Option<String>, Header, description = "The `ETag` or `Last-Modified` of what the client has a part of"),
    ),
    responses(
        (status = 200, description = "The bytes", content((ImageBytes = "image/*")), headers(
            ("ETag" = String, description = "The SHA-256 of the bytes"),
            ("Last-Modified" = String, description = "When they were stored"),
            ("Cache-Control" = String, description = "The bytes never change"),
            ("Cache-Status" = String, description = "Where the bytes came from (RFC 9211)"),
            ("Content-Disposition" = String, description = "`inline`, with the file name if one is known"),
        )),
        (status = 206, description = "The parts asked for; several of them as `multipart/byteranges`", content((ImageBytes = "image/*"))),
        (status = 304, description = "The client has the bytes"),
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
) -> Result<Response, Problem> {
    let (method, uri, headers, draining) = (&method, &uri, &headers, &draining);
    state.delivery.original(ReadRequest { id, method, uri, headers, draining }).await
}

/// A rendition.
///
/// HEAD is answered as well. A request for a rendition that is still in the making is held for a
/// while; of a preset that was never made of the image, the making is begun.
#[utoipa::path(
    get, path = "/images/{id}/{preset}", operation_id = "get_rendition", tag = "delivery",
    params(
        ("id" = ImageId, Path, description = "The image's id"),
        ("preset" = String, Path, description = "The preset's name", example = "small"),
        ("wait" = Option<u32>, Query, description = "Seconds to hold the request while the image is being processed", minimum = 0, maximum = 60),
        ("expires" = Option<i64>, Query, description = "Of a signed URL: until when it is good, in Unix seconds"),
        ("key_id" = Option<String>, Query, description = "Of a signed URL: the key it was signed with"),
        ("signature" = Option<String>, Query, description = "Of a signed URL: its signature"),
        ("accept" = Option<String>, Header, description = "Chooses among the formats of a preset that has several", example = "image/avif,image/webp,*/*"),
        ("prefer" = Option<String>, Header, description = "`wait=` and seconds: the same as the parameter, which counts for more", example = "wait=10"),
        ("if-match" = Option<String>, Header, description = "The `ETag` of the bytes without which the client wants none"),
        ("if-unmodified-since" = Option<String>, Header, description = "The same by `Last-Modified`"),
        ("if-none-match" = Option<String>, Header, description = "The `ETag` of the bytes that the client has"),
        ("if-modified-since" = Option<String>, Header, description = "The `Last-Modified` of the bytes that the client has"),
        ("range" = Option<String>, Header, description = "The parts that the client wants", example = "bytes=0-1023"),
        ("if-range" = Option<String>, Header, description = "The `ETag` or `Last-Modified` of what the client has a part of"),
    ),
    responses(
        (status = 200, description = "The bytes", content((ImageBytes = "image/*")), headers(
            ("ETag" = String, description = "The SHA-256 of the bytes"),
            ("Last-Modified" = String, description = "When they were made"),
            ("Cache-Control" = String, description = "The bytes never change"),
            ("Cache-Status" = String, description = "Where the bytes came from (RFC 9211)"),
            ("Content-Disposition" = String, description = "`inline`, with the file name if one is known"),
            ("Vary" = String, description = "`accept`, if the preset has several formats"),
        )),
        (status = 206, description = "The parts asked for; several of them as `multipart/byteranges`", content((ImageBytes = "image/*"))),
        (status = 304, description = "The client has the bytes"),
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
) -> Result<Response, Problem> {
    let Path((id, preset)) = path.map_err(|_| ImageId::not_found("(unreadable)"))?;
    let id = parse_id::<ImageId>(&id)?;
    let (method, uri, headers, draining) = (&method, &uri, &headers, &draining);
    let request = ReadRequest { id, method, uri, headers, draining };
    state.delivery.rendition(request, &preset).await
}
