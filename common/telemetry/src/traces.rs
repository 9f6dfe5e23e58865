//! Traces: spans of the target [`TARGET`] go to an OpenTelemetry collector, if there is one. Without
//! one these spans are off, and cost a look at a flag each.
//!
//! They are spans of their own, inside those that log lines show: a trace tells how long things took
//! and what caused what, a log line what they were about. Only the trace's id is in both.

use std::sync::OnceLock;

use opentelemetry::{
    Context, KeyValue,
    trace::{
        SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
    },
};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracerProvider},
};
use safelight_config::HttpUrl;
use safelight_domain::TraceContext;
use tracing::{Level, Span, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};
use uuid::Uuid;

use super::export::{self, Exporting};

/// The target of spans that are for traces: `tracing::info_span!(target: traces::TARGET, …)`.
/// Fields that begin with `otel.` are orders to the exporter (`otel.kind`, `otel.name`,
/// `otel.status_code`), the others become attributes.
pub const TARGET: &str = "safelight_trace";

/// Set where spans are exported.
static EXPORTING: OnceLock<Exporting> = OnceLock::new();

/// The layer that exports to the collector at `endpoint` the given share of traces.
pub(super) fn layer<S>(
    endpoint: &HttpUrl,
    ratio: f64,
    role: &'static str,
) -> Result<impl Layer<S> + use<S>, String>
where
    S: tracing::Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    let resource = Resource::builder()
        .with_service_name("safelight")
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", Uuid::now_v7().to_string()),
            KeyValue::new("safelight.role", role),
        ])
        .build();
    let (queue, exporting) = export::start(endpoint, &resource)?;
    let provider = SdkTracerProvider::builder()
        .with_resource(resource)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
        .with_span_processor(queue)
        .build();
    let tracer = provider.tracer("safelight");
    // Of a second call, whose layer has no effect either, nothing remains.
    let _ = EXPORTING.set(exporting);
    Ok(tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_level(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(
            Targets::new().with_default(LevelFilter::OFF).with_target(TARGET, Level::INFO),
        ))
}

/// Sends what was not sent yet; waits two seconds at most. Spans that end later are lost.
pub async fn flush() {
    if let Some(exporting) = EXPORTING.get() {
        exporting.finish().await;
    }
}

/// Whether spans are exported by this process.
pub fn are_on() -> bool {
    EXPORTING.get().is_some()
}

/// The innermost span of this thread that is part of a trace, for who comes after it: also one that
/// is not recorded, so that nobody begins to record in the middle. `None` while tracing is off.
pub fn current() -> Option<TraceContext> {
    if !are_on() {
        return None;
    }
    let context = Context::current();
    let span = context.span().span_context().clone();
    span.is_valid().then(|| TraceContext {
        trace: span.trace_id().to_bytes(),
        span: span.span_id().to_bytes(),
        flags: span.trace_flags().to_u8(),
    })
}

/// Makes `span`, which was not entered yet, a child of `parent`; without one it begins a trace.
pub fn continue_from(span: &Span, parent: Option<TraceContext>) {
    let Some(parent) = parent.filter(|_| are_on()) else { return };
    let remote = SpanContext::new(
        TraceId::from_bytes(parent.trace),
        SpanId::from_bytes(parent.span),
        TraceFlags::new(parent.flags),
        true,
        TraceState::NONE,
    );
    // Fails for a span that is off, which has no parent.
    let _ = span.set_parent(Context::new().with_remote_span_context(remote));
}

/// The id of the trace that this happens in, for log lines; `None` while tracing is off.
pub fn current_id() -> Option<String> {
    current().map(|context| context.trace_id())
}
