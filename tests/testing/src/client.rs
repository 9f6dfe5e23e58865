//! Extensions of `safelight-client` for tests.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Method, Response, header::CONTENT_TYPE};
pub use safelight_client::{Client, accepted};
use serde_json::Value;

/// How long a task may take on a busy machine, even if its worker is killed.
pub const TASK_LIMIT: Duration = Duration::from_secs(90);

/// The boundary between the parts of a form.
const BOUNDARY: &str = "safelight-form-boundary";

/// An upload form: a file and its labels.
#[derive(Default)]
pub struct Form {
    /// The file's name.
    pub filename: String,
    /// Its content.
    pub file: Vec<u8>,
    /// Title, if not empty.
    pub title: String,
    /// Tags, comma-separated, if not empty.
    pub tags: String,
}

/// Calls for tests.
pub trait TestClient {
    /// Waits for at most [`TASK_LIMIT`] until a task has ended; returns its document. Retries while the
    /// server is unavailable.
    fn finished(&self, task: &Value) -> impl Future<Output = Result<Value>> + Send;

    /// Uploads a form; returns the response with any status.
    fn post_form(&self, form: &Form) -> impl Future<Output = Result<Response>> + Send;
}

impl TestClient for Client {
    async fn finished(&self, task: &Value) -> Result<Value> {
        let id = task["id"].as_str().context("a task has an id")?;
        let retrying = self.with_tries(u32::MAX);
        let ended = tokio::time::timeout(TASK_LIMIT, retrying.wait_for_task(id)).await;
        if let Ok(ended) = ended {
            return Ok(ended?);
        }
        let last = self.task(id).await;
        anyhow::bail!("task {id} has not ended after {TASK_LIMIT:?}: {last:?}")
    }

    async fn post_form(&self, form: &Form) -> Result<Response> {
        let request = self
            .request(Method::POST, "/v1/images")
            .header(CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"));
        Ok(request.body(form.body()).send().await?)
    }
}

impl Form {
    /// The form as `multipart/form-data` (RFC 7578), with [`BOUNDARY`].
    fn body(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, value) in [("title", &self.title), ("tags", &self.tags)] {
            if !value.is_empty() {
                let part = format!(
                    "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
                );
                body.extend(part.into_bytes());
            }
        }
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n",
            self.filename
        );
        body.extend(head.into_bytes());
        body.extend_from_slice(&self.file);
        body.extend(format!("\r\n--{BOUNDARY}--\r\n").into_bytes());
        body
    }
}
