//! Which pages of other origins may use the API from a script (`cors_origins`).

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use safelight_config::CorsOrigin;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// How long a browser may cache the response to a preflight.
const PREFLIGHT_KEPT: Duration = Duration::from_hours(1);

/// Headers that clients of the API send beyond those that every page may.
const SENT: [HeaderName; 17] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::CONTENT_DISPOSITION,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::RANGE,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("idempotency-key"),
    HeaderName::from_static("prefer"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("safelight-owner"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("want-repr-digest"),
    HeaderName::from_static("x-request-id"),
];

/// Headers that they read beyond those that every page may.
const READ: [HeaderName; 16] = [
    header::LOCATION,
    header::RETRY_AFTER,
    header::ETAG,
    header::ACCEPT_RANGES,
    header::ALLOW,
    header::CONTENT_DISPOSITION,
    header::CONTENT_RANGE,
    header::LINK,
    header::WWW_AUTHENTICATE,
    HeaderName::from_static("cache-status"),
    HeaderName::from_static("idempotent-replayed"),
    HeaderName::from_static("preference-applied"),
    HeaderName::from_static("ratelimit"),
    HeaderName::from_static("ratelimit-policy"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("x-request-id"),
];

/// Answers preflights and marks responses for the pages of `origins`; `None` for no origins. There are no
/// cookies, so no page acts in the name of its user: it brings its own key.
pub fn layer(origins: &[CorsOrigin]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let any = origins.iter().any(|origin| origin.as_str() == CorsOrigin::ANY);
    let listed = origins.iter().filter_map(|origin| HeaderValue::from_str(origin.as_str()).ok());
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
        .allow_headers(SENT)
        .expose_headers(READ)
        .max_age(PREFLIGHT_KEPT);
    Some(if any {
        // The same for all origins: caches need not vary on it.
        layer.allow_origin(AllowOrigin::any()).vary([])
    } else {
        layer.allow_origin(AllowOrigin::list(listed)).vary([header::ORIGIN])
    })
}

/// Opens a public image to the pages of all origins, which may show it anyway. If its response named the origin
/// that asked, a shared cache would keep a copy for each, and anybody can invent origins.
pub fn open_to_all(headers: &mut HeaderMap) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    let others = |value: &HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"origin");
    let kept: Vec<_> =
        headers.get_all(header::VARY).iter().filter(|v| others(v)).cloned().collect();
    headers.remove(header::VARY);
    headers.extend(kept.into_iter().map(|value| (header::VARY, value)));
}
