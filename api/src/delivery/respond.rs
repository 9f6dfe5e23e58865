//! The response to a request for a representation: all of it, parts, or 304.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::Response,
};

use super::{
    image_view::Representation,
    metadata_cache::Freshness,
    ranges::{self, MultipartRanges, Wanted},
    source::{OpenObject, Provenance, Tiers},
};
use crate::http::problem::{Problem, ProblemCode};

/// Stale metadata may be wrong, so caches must not keep the response for a year.
const UNCERTAIN: HeaderValue = HeaderValue::from_static("no-store");

/// What a response depends on beside what is shown.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// The method.
    pub method: &'a Method,
    /// The query of the URI.
    pub query: Option<&'a str>,
    /// The headers.
    pub headers: &'a HeaderMap,
}

/// The response to a request for `shown`.
pub async fn respond(
    tiers: &Tiers,
    shown: &Representation,
    freshness: Freshness,
    asked: Asked<'_>,
) -> Result<Response, Problem> {
    let mut response = match Plan::of(shown, asked) {
        Plan::Unexpected => return Err(unexpected()),
        Plan::NotModified => head(StatusCode::NOT_MODIFIED, &shown.known, freshness),
        Plan::Head => head(StatusCode::OK, &shown.whole, freshness),
        Plan::Bytes(Wanted::Nothing) => return Err(unsatisfiable(shown.object.bytes)),
        Plan::Bytes(wanted) => {
            let (stored, fetched) = (&shown.object, wanted.fetched(shown.object.bytes));
            let (object, provenance) = tiers.open(stored, fetched).await?;
            bytes(shown, wanted, &object, provenance)
        }
    };
    let cache_control = match freshness {
        Freshness::Stale => UNCERTAIN,
        Freshness::Cached | Freshness::Read => shown.lifetime.cache_control(asked.query),
    };
    response.headers_mut().insert(header::CACHE_CONTROL, cache_control);
    Ok(response)
}

/// The same from fresh metadata, if no bytes have to be fetched for it.
pub fn try_cached(tiers: &Tiers, shown: &Representation, asked: Asked<'_>) -> Option<Response> {
    let mut response = match Plan::of(shown, asked) {
        Plan::NotModified => head(StatusCode::NOT_MODIFIED, &shown.known, Freshness::Cached),
        Plan::Head => head(StatusCode::OK, &shown.whole, Freshness::Cached),
        Plan::Unexpected | Plan::Bytes(Wanted::Nothing) => return None,
        Plan::Bytes(wanted) => {
            let (object, provenance) = tiers.try_cached(&shown.object)?;
            bytes(shown, wanted, &object, provenance)
        }
    };
    let cache_control = shown.lifetime.cache_control(asked.query);
    response.headers_mut().insert(header::CACHE_CONTROL, cache_control);
    Some(response)
}

/// How a request is answered.
enum Plan {
    /// The client wants something else.
    Unexpected,
    /// The client has it.
    NotModified,
    /// The client wants to know what it would get.
    Head,
    /// The client wants these.
    Bytes(Wanted),
}

impl Plan {
    /// In the order of RFC 9110, section 13.2.2.
    fn of(shown: &Representation, Asked { method, headers: request, .. }: Asked<'_>) -> Self {
        if !shown.validators.are_expected_by(request) {
            Self::Unexpected
        } else if shown.validators.is_known_to(request) {
            Self::NotModified
        } else if *method == Method::HEAD {
            Self::Head
        } else if shown.validators.allows_range(request) {
            Self::Bytes(Wanted::of(request, shown.object.bytes))
        } else {
            Self::Bytes(Wanted::Whole)
        }
    }
}

/// A response from the metadata alone.
fn head(status: StatusCode, headers: &HeaderMap, freshness: Freshness) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response.headers_mut().clone_from(headers);
    let known = match freshness {
        Freshness::Cached => "safelight; hit; detail=metadata",
        Freshness::Stale => "safelight; hit; detail=stale-metadata",
        Freshness::Read => "safelight; fwd=uri-miss; detail=metadata",
    };
    response.headers_mut().insert(header::CACHE_STATUS, HeaderValue::from_static(known));
    response
}

/// All bytes, or those that the client asks for.
fn bytes(
    shown: &Representation,
    wanted: Wanted,
    object: &OpenObject,
    provenance: Provenance,
) -> Response {
    let size = shown.object.bytes;
    let mut headers = shown.whole.clone();
    headers.insert(header::CACHE_STATUS, provenance.cache_status());
    let (status, body) = match wanted {
        Wanted::One(span) => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(span.end - span.start));
            let range = HeaderValue::from_str(&ranges::content_range(&span, size));
            headers.extend(range.ok().map(|range| (header::CONTENT_RANGE, range)));
            (StatusCode::PARTIAL_CONTENT, object.body(span))
        }
        Wanted::Several(spans) => {
            let MultipartRanges { content_type, bytes, body } =
                ranges::multipart(object, &spans, size, shown.format);
            if let Some(content_type) = content_type {
                headers.insert(header::CONTENT_TYPE, content_type);
            }
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
            (StatusCode::PARTIAL_CONTENT, body)
        }
        Wanted::Whole | Wanted::Nothing => (StatusCode::OK, object.body(0..size)),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

fn unexpected() -> Problem {
    Problem::new(
        ProblemCode::PreconditionFailed,
        "The bytes are not those that If-Match or If-Unmodified-Since asks for.",
    )
}

fn unsatisfiable(size: u64) -> Problem {
    let problem = Problem::new(
        ProblemCode::RangeNotSatisfiable,
        format!("None of the ranges lies within the {size} bytes."),
    );
    match HeaderValue::from_str(&format!("bytes */{size}")) {
        Ok(range) => problem.header(header::CONTENT_RANGE, range),
        Err(_) => problem,
    }
}
