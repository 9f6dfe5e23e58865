//! A small client of a running server, for the commands that speak to one.

use std::{fmt::Display, io::ErrorKind, path::Path, time::Duration};

use clap::Args;
use reqwest::{Body, Client, RequestBuilder, Response, StatusCode, header};
use safelight_domain::retry::Reconnect;
use serde_json::Value;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::exit::Exit;

/// How often a call that could succeed later is made, the first included.
const TRIES: u32 = 6;

/// Where the server is.
#[derive(Args, Clone)]
pub struct Server {
    /// Base URL of the server
    #[arg(long, env = "SAFELIGHT_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Access key
    #[arg(long, env = "SAFELIGHT_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Act for this owner, or for all with `*`; needs a key with the scope admin
    #[arg(long, env = "SAFELIGHT_OWNER", value_name = "NAME")]
    on_behalf: Option<String>,
}

/// Calls of the HTTP API, tried again where the server says that this can help.
#[derive(Clone)]
pub struct SafelightClient {
    http: Client,
    server: Server,
}

impl SafelightClient {
    /// A client of `server`.
    pub fn new(server: Server) -> Result<Self, Exit> {
        let http = Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .user_agent(concat!("safelight/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(Exit::failed)?;
        if reqwest::Url::parse(&server.url).is_err() {
            return Err(Exit::usage(format!("`{}` is no URL", server.url))
                .hint("give it as http://HOST:PORT with --url or SAFELIGHT_URL"));
        }
        Ok(Self { http, server })
    }

    /// Reads a document.
    pub async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, CallError> {
        self.call(reqwest::Method::GET, path, query).await
    }

    /// Asks for something to be done. Called again after an answer that was lost.
    pub async fn post(&self, path: &str, query: &[(&str, String)]) -> Result<Value, CallError> {
        self.call(reqwest::Method::POST, path, query).await
    }

    /// Has something deleted. Called again after an answer that was lost.
    pub async fn delete(&self, path: &str) -> Result<Value, CallError> {
        self.call(reqwest::Method::DELETE, path, &[]).await
    }

    /// Asks for something to be done that takes a document. Called again after an answer that was lost:
    /// the document must make that harmless.
    pub async fn post_json(&self, path: &str, document: &Value) -> Result<Value, CallError> {
        self.retried(async || {
            answer(self.request(reqwest::Method::POST, path).json(document)).await
        })
        .await
    }

    /// Writes the lines of an answer, each of which has an `id`, to `target`. Where it breaks off, it goes
    /// on after the last whole line.
    pub async fn download(
        &self,
        path: &str,
        target: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), CallError> {
        let mut after = None::<String>;
        let mut delays = Reconnect::default();
        let mut tried = 0;
        loop {
            let query: Vec<_> = after.iter().map(|id| ("after", id.clone())).collect();
            let request = self.request(reqwest::Method::GET, path).query(&query);
            let (moved, ended) = lines(request, target, &mut after).await?;
            tried = if moved { 0 } else { tried + 1 };
            match ended {
                Ok(()) => return flushed(target).await,
                Err(Attempt::Later { wait, .. }) if tried < TRIES => {
                    tokio::time::sleep(wait.unwrap_or(delays.next_delay())).await;
                }
                Err(Attempt::Later { error, .. } | Attempt::Final(error)) => return Err(error),
            }
        }
    }

    async fn call(
        &self,
        method: reqwest::Method,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Value, CallError> {
        self.retried(async || answer(self.request(method.clone(), path).query(query)).await).await
    }

    /// Uploads a file; answers with the task. The key makes tries after the first harmless.
    pub async fn upload(&self, file: &Path, idempotency_key: &str) -> Result<Value, CallError> {
        let name = file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let local = |error: std::io::Error| Attempt::Final(CallError::new(error));
        self.retried(async || {
            let body = tokio::fs::File::open(file).await.map_err(local)?;
            let length = body.metadata().await.map_err(local)?.len();
            let request = self
                .request(reqwest::Method::POST, "/v1/images")
                .header("idempotency-key", idempotency_key)
                .header(header::CONTENT_LENGTH, length)
                .header(header::CONTENT_DISPOSITION, disposition(&name))
                .body(Body::from(body));
            answer(request).await
        })
        .await
    }

    /// Waits until a task is final; answers with it.
    pub async fn finished(&self, task: &str) -> Result<Value, CallError> {
        loop {
            let document = self
                .retried(async || {
                    let path = format!("/v1/tasks/{task}");
                    answer(self.request(reqwest::Method::GET, &path).header("prefer", "wait=30"))
                        .await
                })
                .await?;
            if !document["finished_at"].is_null() {
                return Ok(document);
            }
        }
    }

    fn request(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.server.url.trim_end_matches('/'));
        let request = self.http.request(method, url);
        let request = match &self.server.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        match &self.server.on_behalf {
            Some(owner) => request.header("safelight-owner", owner),
            None => request,
        }
    }

    async fn retried(
        &self,
        call: impl AsyncFn() -> Result<Value, Attempt>,
    ) -> Result<Value, CallError> {
        let mut delays = Reconnect::default();
        for tried in 1.. {
            match call().await {
                Ok(value) => return Ok(value),
                Err(Attempt::Later { wait, .. }) if tried < TRIES => {
                    let backoff = delays.next_delay();
                    tokio::time::sleep(wait.map_or(backoff, |wait| wait + backoff / 4)).await;
                }
                Err(Attempt::Later { error, .. } | Attempt::Final(error)) => return Err(error),
            }
        }
        unreachable!("the loop has no end")
    }
}

/// A call that failed, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    message: String,
    hint: Option<String>,
    can_help: bool,
}

impl CallError {
    /// Whether the same call may succeed later.
    pub fn can_help(&self) -> bool {
        self.can_help
    }

    /// Nothing is known to do about it.
    pub fn new(message: impl Display) -> Self {
        Self { message: message.to_string(), hint: None, can_help: false }
    }
}

impl From<CallError> for Exit {
    fn from(error: CallError) -> Self {
        let exit = Self::failed(&error.message);
        match error.hint {
            Some(hint) => exit.hint(hint),
            None => exit,
        }
    }
}

/// One try of a call.
enum Attempt {
    /// Trying again can help; `wait` is what the server asked for.
    Later { error: CallError, wait: Option<Duration> },
    /// It cannot.
    Final(CallError),
}

/// Copies an answer's whole lines; says whether there were any, and how it ended. `last` is the `id` of the
/// last one. What cannot be written is an error of its own.
async fn lines(
    request: RequestBuilder,
    target: &mut (impl AsyncWrite + Unpin),
    last: &mut Option<String>,
) -> Result<(bool, Result<(), Attempt>), CallError> {
    let mut response = match send(request).await {
        Ok(response) => response,
        Err(attempt) => return Ok((false, Err(attempt))),
    };
    let (mut pending, mut moved) = (Vec::new(), false);
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => pending.extend_from_slice(&chunk),
            Ok(None) => return Ok((moved, Ok(()))),
            Err(error) => return Ok((moved, Err(unreachable(&error)))),
        }
        let Some(end) = pending.iter().rposition(|&byte| byte == b'\n') else { continue };
        let whole: Vec<u8> = pending.drain(..=end).collect();
        match target.write_all(&whole).await {
            // Whoever reads has had enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok((true, Ok(()))),
            written => written.map_err(CallError::new)?,
        }
        let line = whole[..end].rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
        let line: Value = serde_json::from_slice(line).unwrap_or_default();
        *last = line["id"].as_str().map(str::to_owned);
        moved = true;
    }
}

/// Writes out what is left to be written, if somebody still reads.
async fn flushed(target: &mut (impl AsyncWrite + Unpin)) -> Result<(), CallError> {
    match target.flush().await {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CallError::new(error)),
        _ => Ok(()),
    }
}

async fn answer(request: RequestBuilder) -> Result<Value, Attempt> {
    let response = send(request).await?;
    match response.bytes().await {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null)),
        Err(error) => Err(unreachable(&error)),
    }
}

fn unreachable(error: &reqwest::Error) -> Attempt {
    let at = error.url().map_or("the server", reqwest::Url::as_str);
    let message = format!("cannot reach {at}: {}", root_cause(error));
    let hint = Some("is a server running there? name it with --url or SAFELIGHT_URL".to_owned());
    Attempt::Later { error: CallError { message, hint, can_help: true }, wait: None }
}

/// The answer to a request, if it is none of failure.
async fn send(request: RequestBuilder) -> Result<Response, Attempt> {
    let response = request.send().await.map_err(|error| unreachable(&error))?;
    let (status, wait) = (response.status(), retry_after(&response));
    if status.is_success() {
        return Ok(response);
    }
    let body: Value = match response.bytes().await {
        Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        Err(error) => return Err(unreachable(&error)),
    };
    let message = match (body["title"].as_str(), body["detail"].as_str()) {
        (_, Some(detail)) => format!("{status}: {detail}"),
        (Some(title), None) => format!("{status}: {title}"),
        (None, None) => format!("{status}"),
    };
    let can_help = body["retryable"].as_bool().unwrap_or(matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    ));
    let error = CallError { message, hint: body["hint"].as_str().map(str::to_owned), can_help };
    Err(if can_help { Attempt::Later { error, wait } } else { Attempt::Final(error) })
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

/// `Content-Disposition` with the file's name as RFC 8187 wants it.
fn disposition(name: &str) -> String {
    use std::fmt::Write;

    let mut encoded = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            // Writing into a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    format!("attachment; filename*=UTF-8''{encoded}")
}
