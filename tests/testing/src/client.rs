//! What tests ask of a client beyond `safelight-client`.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Method, Response, header::CONTENT_TYPE};
pub use safelight_client::{Client, accepted};
use serde_json::Value;

/// How long a task may take to end, on a busy machine with a worker killed meanwhile.
pub const TASK_LIMIT: Duration = Duration::from_secs(90);

/// What separates the parts of a form.
const BOUNDARY: &str = "safelight-form-boundary";

/// A form to upload: one file, and what is known of it.
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

/// Calls as tests make them.
pub trait TestClient {
    /// Waits until a task has ended and returns its document. While the server is unavailable it is asked
    /// again, for at most [`TASK_LIMIT`].
    fn finished(&self, task: &Value) -> impl Future<Output = Result<Value>> + Send;

    /// Uploads a form; returns the response whatever its status.
    fn post_form(&self, form: &Form) -> impl Future<Output = Result<Response>> + Send;
}

impl TestClient for Client {
    async fn finished(&self, task: &Value) -> Result<Value> {
        let id = task["id"].as_str().context("a task has an id")?;
        let patient = self.with_tries(u32::MAX);
        let ended = tokio::time::timeout(TASK_LIMIT, patient.wait_for_task(id)).await;
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
