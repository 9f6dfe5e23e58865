//! How large the head of a request may be.
//!
//! The HTTP library has larger limits (100 fields, 64 KiB in all), past which it answers without a problem
//! document.

use axum::{
    extract::Request,
    http::Uri,
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::problem::{Problem, ProblemCode};

/// Bytes of a path with its query. No URL of the API and no filter comes near.
const MAX_TARGET_BYTES: usize = 8 * 1024;

/// Header fields.
const MAX_FIELDS: usize = 64;

/// Bytes of all header fields.
const MAX_FIELD_BYTES: usize = 16 * 1024;

/// A mark of a request that is one too many: its connection has others in flight, and so have all connections
/// together as many as the node allows.
#[derive(Clone, Copy)]
pub struct OneTooMany;

/// The problem with a request that is one too many, or whose head is too large.
pub fn exceeded<B>(request: &Request<B>) -> Option<Problem> {
    if request.extensions().get::<OneTooMany>().is_some() {
        let detail = "This node has as many concurrent requests as it allows.";
        let problem = Problem::new(ProblemCode::TooManyRequests, detail);
        return Some(problem.hint("send fewer requests concurrently on one connection"));
    }
    if target_bytes(request.uri()) > MAX_TARGET_BYTES {
        let detail = format!("Path and query may have {MAX_TARGET_BYTES} bytes at most.");
        return Some(Problem::new(ProblemCode::UriTooLong, detail));
    }
    let fields = request.headers();
    let bytes = || -> usize { fields.iter().map(|(k, v)| k.as_str().len() + v.len()).sum() };
    (fields.len() > MAX_FIELDS || bytes() > MAX_FIELD_BYTES).then(|| {
        let detail = format!(
            "A request may have {MAX_FIELDS} header fields of {MAX_FIELD_BYTES} bytes in all at most."
        );
        Problem::new(ProblemCode::HeadTooLarge, detail)
    })
}

fn target_bytes(uri: &Uri) -> usize {
    uri.path().len() + uri.query().map_or(0, str::len)
}

/// Middleware: rejects such requests.
pub async fn enforce(request: Request, next: Next) -> Response {
    match exceeded(&request) {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    }
}
