//! A minimal OpenTelemetry collector for tests: receives spans over OTLP/HTTP and keeps them.

use std::{
    convert::Infallible,
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{span::SpanKind, status::StatusCode as SpanStatus},
};
use prost::Message;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// A received span.
#[derive(Debug, Clone)]
pub struct Span {
    /// The trace's id, 32 hexadecimal digits.
    pub trace: String,
    /// Its own id, 16 hexadecimal digits.
    pub id: String,
    /// Its parent's id; empty for the first of a trace.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// Its kind, such as server or producer.
    pub kind: SpanKind,
    /// Whether it failed.
    pub failed: bool,
    /// Start time in nanoseconds since 1970.
    pub start: u64,
    /// End time in nanoseconds since 1970.
    pub end: u64,
    attributes: Vec<(String, String)>,
    resource: Vec<(String, String)>,
}

impl Span {
    /// An attribute as text.
    pub fn attribute(&self, key: &str) -> Option<&str> {
        find(&self.attributes, key)
    }

    /// An attribute of the process that sent it.
    pub fn resource(&self, key: &str) -> Option<&str> {
        find(&self.resource, key)
    }

    /// Whether an attribute occurs twice, which OpenTelemetry forbids.
    pub fn repeats_an_attribute(&self) -> bool {
        let count = |key: &String| self.attributes.iter().filter(|(k, _)| k == key).count();
        self.attributes.iter().any(|(key, _)| count(key) > 1)
    }
}

fn find<'a>(pairs: &'a [(String, String)], key: &str) -> Option<&'a str> {
    pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str())
}

/// Receives spans at [`Collector::url`] until it is dropped.
pub struct Collector {
    url: String,
    spans: Arc<Mutex<Vec<Span>>>,
    connections: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Collector {
    /// Listens on a free port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let connections: Arc<AtomicUsize> = Arc::default();
        let task = tokio::spawn(serve(listener, Arc::clone(&spans), Arc::clone(&connections)));
        Ok(Self { url, spans, connections, _task: AbortOnDropHandle::new(task) })
    }

    /// Its URL for `otlp_endpoint`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// All spans so far, in the order of arrival.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of connections it has accepted.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The spans of one trace.
    pub fn trace(&self, id: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.trace == id).collect()
    }
}

async fn serve(listener: TcpListener, spans: Arc<Mutex<Vec<Span>>>, connections: Arc<AtomicUsize>) {
    while let Ok((stream, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::SeqCst);
        let spans = Arc::clone(&spans);
        tokio::spawn(async move {
            let service = service_fn(move |request| handle(request, Arc::clone(&spans)));
            let builder = Builder::new(TokioExecutor::new());
            // Broken connections are not errors of the collector.
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn handle(
    request: Request<Incoming>,
    spans: Arc<Mutex<Vec<Span>>>,
) -> Result<Response<Full<bytes::Bytes>>, Infallible> {
    let (status, body) = match receive(request).await {
        Ok(received) => {
            spans.lock().unwrap_or_else(PoisonError::into_inner).extend(received);
            (StatusCode::OK, ExportTraceServiceResponse::default().encode_to_vec())
        }
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string().into_bytes()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    Ok(response)
}

async fn receive(request: Request<Incoming>) -> Result<Vec<Span>> {
    let content_type = request.headers().get("content-type").context("no content type")?;
    anyhow::ensure!(request.method() == Method::POST && request.uri().path() == "/v1/traces");
    anyhow::ensure!(content_type == "application/x-protobuf");
    let body = request.into_body().collect().await?.to_bytes();
    let exported = ExportTraceServiceRequest::decode(body)?;
    let mut spans = Vec::new();
    for part in exported.resource_spans {
        let resource = pairs(&part.resource.unwrap_or_default().attributes);
        for span in part.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                kind: span.kind(),
                failed: span.status.as_ref().is_some_and(|s| s.code() == SpanStatus::Error),
                start: span.start_time_unix_nano,
                end: span.end_time_unix_nano,
                attributes: pairs(&span.attributes),
                name: span.name,
                resource: resource.clone(),
            });
        }
    }
    Ok(spans)
}

fn pairs(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(&pair.value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
