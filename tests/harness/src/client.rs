//! A small HTTP client for a running Safelight.

use std::{
    sync::Once,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use reqwest::{
    Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION},
};
use serde_json::Value;

/// How long a task may take to end, on a busy machine with a worker killed meanwhile.
pub const TASK_LIMIT: Duration = Duration::from_secs(90);

/// What separates the parts of a form.
const BOUNDARY: &str = "safelight-form-boundary";

/// Speaks to one server. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
}

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

impl Client {
    /// A client of the server at `base`, such as `http://127.0.0.1:8080`.
    pub fn new(base: &str) -> Result<Self> {
        Self::sending(base, HeaderMap::new())
    }

    /// The same with a key.
    pub fn with_key(base: &str, secret: &str) -> Result<Self> {
        let value = HeaderValue::try_from(format!("Bearer {secret}"))?;
        Self::sending(base, HeaderMap::from_iter([(AUTHORIZATION, value)]))
    }

    fn sending(base: &str, headers: HeaderMap) -> Result<Self> {
        install_tls();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(70));
        let http = http.default_headers(headers).build()?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned() })
    }

    /// The address of a path, such as `/v1/images`.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// The bare client, for requests with headers of their own.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// `GET`, whatever the answer.
    pub async fn get(&self, path: &str) -> Result<Response> {
        Ok(self.http.get(self.url(path)).send().await?)
    }

    /// `GET` of a JSON document; fails unless it is a 200.
    pub async fn json(&self, path: &str) -> Result<Value> {
        Ok(self.get(path).await?.error_for_status()?.json().await?)
    }

    /// `GET` of bytes; fails unless it is a 200.
    pub async fn bytes(&self, path: &str) -> Result<Bytes> {
        Ok(self.get(path).await?.error_for_status()?.bytes().await?)
    }

    /// Uploads a raw body, with `headers`; whatever the answer.
    pub async fn post_image(
        &self,
        body: impl Into<reqwest::Body>,
        headers: &[(&str, &str)],
    ) -> Result<Response> {
        let request = self.http.post(self.url("/v1/images")).header(CONTENT_TYPE, "image/jpeg");
        let request = headers.iter().fold(request, |r, (name, value)| r.header(*name, *value));
        Ok(request.body(body).send().await?)
    }

    /// Uploads a form; whatever the answer.
    pub async fn post_form(&self, form: &Form) -> Result<Response> {
        let request = self
            .http
            .post(self.url("/v1/images"))
            .header(CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"));
        Ok(request.body(form.body()).send().await?)
    }

    /// Uploads a raw body and returns its task document; fails unless it is accepted.
    pub async fn upload(&self, body: impl Into<reqwest::Body>) -> Result<Value> {
        accepted(self.post_image(body, &[]).await?).await
    }

    /// Waits until a task has ended and returns its document. Answers that never come, and those
    /// of a server that is just away, are asked for again.
    pub async fn finished(&self, task: &Value) -> Result<Value> {
        let id = task["id"].as_str().context("a task has an id")?;
        let deadline = Instant::now() + TASK_LIMIT;
        let mut last = String::new();
        while Instant::now() < deadline {
            let answer =
                self.http.get(self.url(&format!("/v1/tasks/{id}"))).header("Prefer", "wait=5");
            match answer.send().await {
                Ok(answer) if answer.status() == StatusCode::OK => {
                    let task: Value = answer.json().await?;
                    if matches!(task["status"].as_str(), Some("succeeded" | "failed" | "cancelled"))
                    {
                        return Ok(task);
                    }
                    last = task.to_string();
                }
                Ok(answer) if answer.status().is_server_error() => {
                    last = answer.status().to_string();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Ok(answer) => {
                    anyhow::bail!("task {id}: {}: {}", answer.status(), answer.text().await?)
                }
                Err(error) => {
                    last = error.to_string();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        anyhow::bail!("task {id} has not ended after {TASK_LIMIT:?}: {last}")
    }
}

/// The task document of an accepted upload; fails unless the answer is a 202 that names the task.
pub async fn accepted(answer: Response) -> Result<Value> {
    let status = answer.status();
    let location = answer
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let text = answer.text().await?;
    ensure!(status == StatusCode::ACCEPTED, "expected 202, got {status}: {text}");
    let task: Value = serde_json::from_str(&text).context("the task document")?;
    let id = task["id"].as_str().context("a task has an id")?;
    ensure!(location == format!("/v1/tasks/{id}"), "Location {location:?} for task {id}");
    Ok(task)
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

/// Gives rustls its cryptography, once per process: reqwest is built to have none of its own.
pub fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only if somebody else has installed one, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}
