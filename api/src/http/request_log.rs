//! Every request has an id and a span; requests to the API have a span in a trace too.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    middleware::Next,
    response::Response,
};
use safelight_domain::TraceContext;
use safelight_telemetry::traces;
use tracing::{Instrument, Span, field::Empty};
use uuid::Uuid;

use super::security_headers::is_public;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Maximum length of a request id that is accepted from a client, in characters.
const MAX_ID_CHARS: usize = 128;

/// Middleware: gives the request an id (the sender's, if it is valid), and logs how it ended.
pub async fn log(request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let span = tracing::info_span!(
        "request",
        request_id = id.as_ref().and_then(|id| id.to_str().ok()),
        method = %request.method(),
        path = request.uri().path(),
        trace_id = Empty,
    );
    let traced = traced(&request, &span);
    async move {
        let started = Instant::now();
        let mut response = next.run(request).await;
        note_status(response.status());
        let (status, took_ms) = (response.status().as_u16(), started.elapsed().as_millis());
        if is_fault(response.status()) {
            tracing::info!(status, took_ms, "answered");
        } else if is_rejection(response.status())
            && let Some(unlogged) = REJECTIONS.note(started)
        {
            tracing::info!(status, took_ms, unlogged, "rejected");
        } else {
            tracing::debug!(status, took_ms, "answered");
        }
        complete(&mut response, id);
        response
    }
    // The traced span is the inner one: tasks that a handler starts inherit the innermost.
    .instrument(traced)
    .instrument(span)
    .await
}

/// The span of a request to the API in its client's trace, or in a new one. Requests for bytes and probes
/// have none. Records the trace's id in `logged`.
fn traced(request: &Request, logged: &Span) -> Span {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let Some(path) = path.filter(|path| traces::are_on() && path.starts_with("/v1/")) else {
        return Span::none();
    };
    let span = tracing::info_span!(
        target: traces::TARGET,
        parent: logged,
        "request",
        otel.name = format!("{} {path}", request.method()),
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = request.method().as_str(),
        http.route = path,
        http.response.status_code = Empty,
        safelight.task = Empty,
    );
    let sent = request.headers().get(TraceContext::HEADER).and_then(|value| value.to_str().ok());
    traces::continue_from(&span, sent.and_then(|text| text.parse().ok()));
    let id = span.in_scope(traces::current_id);
    logged.record("trace_id", id);
    span
}

/// Whether a response tells of a fault of its own.
fn is_fault(status: StatusCode) -> bool {
    status.is_server_error() && !is_rejection(status)
}

/// Whether it is one of many: an outage, an overload or a full disk rejects every request.
fn is_rejection(status: StatusCode) -> bool {
    matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::INSUFFICIENT_STORAGE)
}

/// The rejections of this process. One of them is logged per [`Rejections::PERIOD`].
static REJECTIONS: Rejections = Rejections(Mutex::new(None));

/// When a rejection was logged last, and how many were not since then.
struct Rejections(Mutex<Option<(Instant, u64)>>);

impl Rejections {
    const PERIOD: Duration = Duration::from_secs(10);

    /// Counts a rejection. If it is to be logged, returns how many were not logged before it.
    fn note(&self, now: Instant) -> Option<u64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *last {
            Some((logged_at, unlogged)) if now.duration_since(*logged_at) < Self::PERIOD => {
                *unlogged += 1;
                None
            }
            last => {
                let unlogged = last.map_or(0, |(_, unlogged)| unlogged);
                *last = Some((now, 0));
                Some(unlogged)
            }
        }
    }
}

/// Records in the trace how a request was answered.
fn note_status(status: StatusCode) {
    let span = Span::current();
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "error");
    }
}

/// The same for a request that was answered from memory. Nothing else is logged of it, so it gets no id unless
/// its sender gave it one.
pub fn log_cached<B>(request: &Request<B>, response: &mut Response) {
    log_briefly(request, response, sent_id(request.headers()), "answered from memory");
}

/// The same for a request that no route gets to see.
pub fn log_rejected<B>(request: &Request<B>, response: &mut Response) {
    log_briefly(request, response, request_id(request.headers()), "rejected");
}

fn log_briefly<B>(
    request: &Request<B>,
    response: &mut Response,
    id: Option<HeaderValue>,
    what: &str,
) {
    tracing::debug!(
        request_id = id.as_ref().and_then(|id| id.to_str().ok()),
        method = %request.method(),
        path = request.uri().path(),
        status = response.status().as_u16(),
        "{what}"
    );
    complete(response, id);
}

/// The sender's id, or a new one, which tells nothing about the ids of images, not even their time.
fn request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let new = || {
        let mut text = Uuid::encode_buffer();
        HeaderValue::from_str(Uuid::new_v4().hyphenated().encode_lower(&mut text)).ok()
    };
    sent_id(headers).or_else(new)
}

fn sent_id(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(&REQUEST_ID).filter(|id| is_valid(id)).cloned()
}

/// Tells the client the id of its request. A shared cache would tell everybody else too, so a response that it
/// may keep has none.
fn complete(response: &mut Response, id: Option<HeaderValue>) {
    let id = id.filter(|_| !is_public(response.headers()));
    response.headers_mut().extend(id.map(|id| (REQUEST_ID, id)));
}

/// Whether an id can go into logs and headers as it is.
fn is_valid(id: &HeaderValue) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(byte);
    (1..=MAX_ID_CHARS).contains(&id.len()) && id.as_bytes().iter().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejections_of_an_outage_are_logged_once_per_period() {
        let rejections = Rejections(Mutex::default());
        let start = Instant::now();
        assert_eq!(rejections.note(start), Some(0));
        for request in 1..=400 {
            assert_eq!(rejections.note(start + Duration::from_millis(request)), None);
        }
        assert_eq!(rejections.note(start + Rejections::PERIOD), Some(400));
        assert_eq!(rejections.note(start + Rejections::PERIOD * 3), Some(0));
    }
}
