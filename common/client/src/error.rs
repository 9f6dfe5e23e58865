use std::{fmt::Display, time::Duration};

use reqwest::{Response, StatusCode, header};
use serde_json::Value;

use crate::documents::Problem;

/// A call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ClientError {
    message: String,
    hint: Option<String>,
    unreachable: bool,
    retryable: bool,
    retry_after: Option<Duration>,
}

impl ClientError {
    /// An error that a retry would not fix.
    pub fn new(message: impl Display) -> Self {
        Self {
            message: message.to_string(),
            hint: None,
            unreachable: false,
            retryable: false,
            retry_after: None,
        }
    }

    /// What the server advises to do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Whether there was no complete answer.
    pub fn is_unreachable(&self) -> bool {
        self.unreachable
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// How long the server asked the client to wait before the next try.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    pub(crate) fn unreachable(error: &reqwest::Error) -> Self {
        let at = error.url().map_or("the server", reqwest::Url::as_str);
        let message = format!("cannot reach {at}: {}", root_cause(error));
        Self { unreachable: true, retryable: true, ..Self::new(message) }
    }

    /// The error that an error response describes.
    pub(crate) async fn rejected(response: Response) -> Self {
        let (status, retry_after) = (response.status(), retry_after(&response));
        let problem: Problem = match response.bytes().await {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(error) => return Self::unreachable(&error),
        };
        let message = match problem.detail.or(problem.title) {
            Some(text) => format!("{status}: {text}"),
            None => status.to_string(),
        };
        let retryable = problem.retryable.unwrap_or(matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        ));
        Self { hint: problem.hint, retryable, retry_after, ..Self::new(message) }
    }

    /// A success that does not look like a response of this API.
    pub(crate) fn unexpected(what: &str, document: &Value) -> Self {
        Self::new(format!("the server's answer holds no {what}: is it Safelight? {document}"))
    }
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(Duration::from_mins(1)))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source())
        .last()
        .map_or_else(String::new, ToString::to_string)
}
