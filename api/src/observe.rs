//! Every request has an id and a span.

use std::time::Instant;

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    middleware::Next,
    response::Response,
};
use tracing::Instrument;
use uuid::Uuid;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Characters of a request id that we take over at most.
const MAX_ID_CHARS: usize = 128;

/// Middleware: gives the request an id (the sender's, if it is sane), logs how it ended, and sets
/// the headers that every answer has.
pub async fn observe(request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let span = tracing::info_span!(
        "request",
        id = id.as_ref().and_then(|id| id.to_str().ok()),
        method = %request.method(),
        path = request.uri().path(),
    );
    async move {
        let begun = Instant::now();
        let mut response = next.run(request).await;
        let (status, took_ms) = (response.status().as_u16(), begun.elapsed().as_millis());
        if response.status().is_server_error() {
            tracing::info!(status, took_ms, "answered");
        } else {
            tracing::debug!(status, took_ms, "answered");
        }
        complete(&mut response, id);
        response
    }
    .instrument(span)
    .await
}

/// The same for a request that was answered on the spot: it has nothing to log but that.
pub fn note<B>(request: &Request<B>, response: &mut Response) {
    let id = request_id(request.headers());
    tracing::debug!(
        id = id.as_ref().and_then(|id| id.to_str().ok()),
        method = %request.method(),
        path = request.uri().path(),
        status = response.status().as_u16(),
        "answered at once"
    );
    complete(response, id);
}

/// The sender's id, or a new one.
fn request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let sent = headers.get(&REQUEST_ID).filter(|id| is_sane(id)).cloned();
    let new = || {
        let mut text = Uuid::encode_buffer();
        HeaderValue::from_str(Uuid::now_v7().hyphenated().encode_lower(&mut text)).ok()
    };
    sent.or_else(new)
}

fn complete(response: &mut Response, id: Option<HeaderValue>) {
    let headers = response.headers_mut();
    headers.extend(id.map(|id| (REQUEST_ID, id)));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// Whether an id can go into logs and headers as it is.
fn is_sane(id: &HeaderValue) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
    (1..=MAX_ID_CHARS).contains(&id.len()) && id.as_bytes().iter().all(plain)
}
