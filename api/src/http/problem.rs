//! The one place that turns errors into responses: RFC 9457 problem documents.
//!
//! Handlers return a [`Problem`]; it travels in the response's extensions until [`complete`] writes
//! the document, because only there the request's path is known. The text of an internal error goes
//! to the log and never into the document.

use std::{
    any::Any,
    sync::{Arc, LazyLock},
    time::SystemTime,
};

use axum::{
    Json,
    body::{Body, HttpBody},
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use safelight_blobs::{BlobError, IngestError};
use safelight_store::StoreError;
use safelight_telemetry::DependencyHealth;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

pub use super::problem_code::{ProblemCode, Retry};

/// The media type of every error.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// A response that is an error. Boxed, because every `Result` carries room for one.
#[derive(Debug, Clone)]
pub struct Problem(Box<Fields>);

#[derive(Debug, Clone)]
struct Fields {
    code: ProblemCode,
    detail: String,
    hint: Option<String>,
    extensions: Map<String, Value>,
    headers: HeaderMap,
}

/// The document of every error (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemDocument {
    /// Identifies the kind of problem: `urn:safelight:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:safelight:problem:upload_too_large")]
    pub kind: String,
    /// A short text for this kind of problem.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time.
    pub detail: String,
    /// The requested path.
    pub instance: String,
    /// The stable error code.
    #[schema(example = "upload_too_large")]
    pub code: String,
    /// Whether the same request can succeed later.
    pub retryable: bool,
    /// What the client can do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Additional fields of some kinds of problems: `reason` (why an image failed), `presets`, `parts`.
    #[serde(flatten)]
    pub extensions: Map<String, Value>,
}

impl Problem {
    /// A problem with what happened this time, for the client to read.
    pub fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self(Box::new(Fields {
            code,
            detail: detail.into(),
            hint: None,
            extensions: Map::new(),
            headers: HeaderMap::new(),
        }))
    }

    /// The upload has more bytes than `limit`.
    pub fn upload_too_large(limit: u64) -> Self {
        Self::new(ProblemCode::UploadTooLarge, format!("An upload may have {limit} bytes at most."))
            .with("limit_bytes", limit)
    }

    /// The image existed once; it was `deleted`, or its upload was cancelled.
    pub fn image_gone(deleted: bool) -> Self {
        if deleted {
            return Self::new(ProblemCode::ImageDeleted, "The image was deleted.");
        }
        Self::new(
            ProblemCode::ImageCancelled,
            "The upload of this image was cancelled; its bytes are gone.",
        )
    }

    /// The database does not answer.
    pub fn database_unavailable() -> Self {
        let detail = "The database cannot be used at the moment.";
        Self::new(ProblemCode::DatabaseUnavailable, detail)
    }

    /// The server failed: `error` is logged, and the client learns only that there was one.
    pub fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::error!(%error, "request failed");
        Self::new(ProblemCode::Internal, "Something went wrong on the server; it has been logged.")
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds a member to the document.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.extensions.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a header to the response.
    pub fn header(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.0.headers.insert(name, value);
        self
    }

    /// Its kind.
    pub fn code(&self) -> ProblemCode {
        self.0.code
    }

    /// The value of a header that the response will have; empty if none.
    #[cfg(test)]
    pub fn sent_header(&self, name: &header::HeaderName) -> String {
        let value = self.0.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    }

    /// The document for a request of `instance`.
    fn document(self, instance: String) -> ProblemDocument {
        ProblemDocument {
            kind: format!("urn:safelight:problem:{}", self.0.code.as_str()),
            title: self.0.code.title().to_owned(),
            status: self.0.code.status().as_u16(),
            detail: self.0.detail,
            instance,
            code: self.0.code.as_str().to_owned(),
            retryable: self.0.code.retry() != Retry::Never,
            hint: self.0.hint,
            extensions: self.0.extensions,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.0.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}

impl From<&StoreError> for Problem {
    fn from(error: &StoreError) -> Self {
        if error.is_unavailable() {
            static DATABASE: LazyLock<DependencyHealth> =
                LazyLock::new(|| DependencyHealth::new("use the database"));
            DATABASE.failed(error);
            if error.is_full() {
                return Self::new(ProblemCode::StorageFull, "The database has no space left.");
            }
            return Self::database_unavailable();
        }
        Self::internal(error)
    }
}

impl From<Arc<StoreError>> for Problem {
    fn from(error: Arc<StoreError>) -> Self {
        Self::from(&*error)
    }
}

impl From<BlobError> for Problem {
    fn from(error: BlobError) -> Self {
        Self::from(&error)
    }
}

impl From<&BlobError> for Problem {
    fn from(error: &BlobError) -> Self {
        static BLOB_STORE: LazyLock<DependencyHealth> =
            LazyLock::new(|| DependencyHealth::new("use the blob store"));
        BLOB_STORE.failed(error);
        match error {
            BlobError::Full => {
                Self::new(ProblemCode::StorageFull, "The storage has no space left.")
            }
            BlobError::NotFound
            | BlobError::TooLarge { .. }
            | BlobError::Damaged
            | BlobError::WrongStore(_)
            | BlobError::Store(_)
            | BlobError::Late
            | BlobError::File(_) => Self::new(
                ProblemCode::BlobsUnavailable,
                "The blob store cannot be used at the moment.",
            ),
        }
    }
}

impl From<IngestError> for Problem {
    fn from(error: IngestError) -> Self {
        match error {
            IngestError::Empty => Self::new(ProblemCode::EmptyBody, "The upload has no bytes."),
            IngestError::Heic | IngestError::NotAnImage => Self::new(
                ProblemCode::UnsupportedMediaType,
                format!("The upload is rejected: {error}."),
            ),
            IngestError::TooLarge(limit) => Self::upload_too_large(limit),
            IngestError::Blobs(error) => error.into(),
        }
    }
}

/// Middleware: writes the document of every error, wherever it came from.
pub async fn complete(request: Request, next: Next) -> Response {
    let instance = request.uri().path().to_owned();
    let head = request.method() == Method::HEAD;
    let mut response = next.run(request).await;
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let problem = response
        .extensions_mut()
        .remove::<Problem>()
        .unwrap_or_else(|| Problem::new(generic(status), "The request was rejected."));
    render(problem, instance, head, response)
}

/// The whole response to a request that reaches no middleware.
pub fn answer<B>(problem: Problem, request: &Request<B>) -> Response {
    let (instance, head) = (request.uri().path().to_owned(), *request.method() == Method::HEAD);
    let empty = problem.0.code.status().into_response();
    render(problem, instance, head, empty)
}

/// The bytes of the whole response in place of an error that the HTTP library writes by itself; `None` for a status
/// that it does not use. The request is not known.
pub fn of_library(status: u16) -> Option<Vec<u8>> {
    let (code, detail) = match status {
        400 => (ProblemCode::InvalidRequest, "What was sent is not valid HTTP."),
        414 => (ProblemCode::UriTooLong, "The path and the query are too long."),
        431 => (ProblemCode::HeadTooLarge, "The header fields are too many or too large."),
        _ => return None,
    };
    let (status, date) = (code.status(), httpdate::fmt_http_date(SystemTime::now()));
    let body = serde_json::to_string(&Problem::new(code, detail).document(String::new())).ok()?;
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\
         date: {date}\r\n\r\n",
        body.len()
    );
    Some((head + &body).into_bytes())
}

/// The kind of an error response that a library made.
fn generic(status: StatusCode) -> ProblemCode {
    match status {
        StatusCode::NOT_FOUND => ProblemCode::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => ProblemCode::MethodNotAllowed,
        StatusCode::PAYLOAD_TOO_LARGE => ProblemCode::UploadTooLarge,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => ProblemCode::UnsupportedMediaType,
        status if status.is_client_error() => ProblemCode::InvalidRequest,
        _ => ProblemCode::Internal,
    }
}

/// Replaces the body of `response`; its headers (such as `Allow`) stay.
fn render(problem: Problem, instance: String, head: bool, response: Response) -> Response {
    let status = problem.0.code.status();
    let retry = problem.0.code.retry();
    let (mut parts, _) = response.into_parts();
    parts.status = status;
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.extend(problem.0.headers.clone());
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    // A cached error would outlive its cause.
    parts.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Retry::After(seconds) = retry
        && !parts.headers.contains_key(header::RETRY_AFTER)
    {
        parts.headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    let (json, body) = Json(problem.document(instance)).into_response().into_parts();
    if json.status.is_server_error() {
        tracing::error!("a problem document could not be written");
    }
    if head && let Some(bytes) = body.size_hint().exact() {
        // What GET would have (RFC 9110, section 8.6).
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    }
    Response::from_parts(parts, if head { Body::empty() } else { body })
}

/// The response for a handler that panicked.
#[allow(clippy::needless_pass_by_value)] // the middleware hands it over by value
pub fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message");
    Problem::internal(&format_args!("panicked: {message}")).into_response()
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware::from_fn, routing::get};
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    use tower_http::catch_panic::CatchPanicLayer;

    use super::*;

    async fn answer(router: Router, path: &str) -> (Response<()>, Value) {
        let router = router.layer(CatchPanicLayer::custom(panicked)).layer(from_fn(complete));
        let request = Request::get(path).body(Body::empty()).expect("request");
        let (parts, body) = router.oneshot(request).await.expect("infallible").into_parts();
        let body = body.collect().await.expect("body").to_bytes();
        (Response::from_parts(parts, ()), serde_json::from_slice(&body).expect("JSON"))
    }

    /// Clients decide by `type`, `code`, `status` and `retryable`, so a change of any of these breaks
    /// them. `tests/snapshots/mod.rs` at the root says how to accept a change.
    #[tokio::test]
    async fn problem_documents_are_stable() {
        let mut lines = Vec::new();
        for &code in ProblemCode::ALL {
            let fail = move || async move { Problem::new(code, "What happened this time.") };
            let (response, mut body) = answer(Router::new().route("/a", get(fail)), "/a").await;
            let retry_after = response.headers().get(header::RETRY_AFTER);
            let retry_after = retry_after.map_or("none", |value| value.to_str().expect("ASCII"));
            let document = body.as_object_mut().expect("an object");
            document.retain(|member, _| member != "detail" && member != "instance");
            lines.push(format!("{} Retry-After: {retry_after} {body}", response.status().as_u16()));
        }
        let mut settings = insta::Settings::clone_current();
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!("problems", lines.join("\n")));
    }

    #[tokio::test]
    async fn internal_error_text_is_not_sent() {
        let fail = || async { Problem::internal(&"password is hunter2") };
        let (response, body) = answer(Router::new().route("/a", get(fail)), "/a").await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()[header::CONTENT_TYPE], MEDIA_TYPE);
        assert_eq!(body["type"], "urn:safelight:problem:internal");
        assert_eq!(body["instance"], "/a");
        assert!(!body.to_string().contains("hunter2"));
    }

    #[tokio::test]
    async fn panic_becomes_a_problem() {
        async fn explode() -> &'static str {
            panic!("secret {}", 42)
        }
        let (response, body) = answer(Router::new().route("/a", get(explode)), "/a").await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(body["code"], "internal");
        assert!(!body.to_string().contains("secret"));
    }

    #[tokio::test]
    async fn plain_errors_of_libraries_become_problems() {
        let reject = || async { (StatusCode::PAYLOAD_TOO_LARGE, "too large") };
        let (_, body) = answer(Router::new().route("/a", get(reject)), "/a").await;
        assert_eq!(body["code"], "upload_too_large");
    }

    #[tokio::test]
    async fn full_disk_and_unavailable_database_are_retryable() {
        let full = || async { Problem::from(BlobError::Full) };
        let (response, body) = answer(Router::new().route("/a", get(full)), "/a").await;
        assert_eq!(response.status(), StatusCode::INSUFFICIENT_STORAGE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "30");
        assert_eq!(body["retryable"], true);
        let busy = || async { Problem::new(ProblemCode::DatabaseUnavailable, "unavailable") };
        let (response, _) = answer(Router::new().route("/a", get(busy)), "/a").await;
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    }
}
