//! Traces: spans with the target [`TARGET`] are exported to an OpenTelemetry collector, if one is configured. If
//! not, these spans are disabled, and each costs one check of a flag.
//!
//! They are separate from the spans whose fields log lines show, and nested inside them: traces show durations and
//! causes, log lines show details. Only the trace's id is in both.

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

/// The target of spans for traces: `tracing::info_span!(target: traces::TARGET, …)`. Fields that start with `otel.`
/// control the exporter (`otel.kind`, `otel.name`, `otel.status_code`); the others become attributes.
pub const TARGET: &str = "safelight_trace";

/// Set if spans are exported.
static EXPORTING: OnceLock<Exporting> = OnceLock::new();

/// The layer that exports the fraction `ratio` of traces to the collector at `endpoint`.
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
            KeyValue::new("service.instance.id", Uuid::new_v4().to_string()),
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
    // Fails for a second call, whose layer has no effect either.
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

/// Sends the remaining spans, and waits at most two seconds. Spans that end later are lost.
pub async fn flush() {
    if let Some(exporting) = EXPORTING.get() {
        exporting.finish().await;
    }
}

/// Whether this process exports spans.
pub fn are_on() -> bool {
    EXPORTING.get().is_some()
}

/// The context of this thread's innermost span, to continue its trace elsewhere. Also returned if the trace is not
/// recorded, so that no other process starts to record in the middle. `None` if tracing is off.
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

/// Makes `span`, which must not be entered yet, a child of `parent`. Without a parent it starts a trace.
pub fn continue_from(span: &Span, parent: Option<TraceContext>) {
    let Some(parent) = parent.filter(|_| are_on()) else { return };
    let remote = SpanContext::new(
        TraceId::from_bytes(parent.trace),
        SpanId::from_bytes(parent.span),
        TraceFlags::new(parent.flags),
        true,
        TraceState::NONE,
    );
    // Fails for a disabled span, which needs no parent.
    let _ = span.set_parent(Context::new().with_remote_span_context(remote));
}

/// The id of the current trace, for log lines; `None` if tracing is off.
pub fn current_id() -> Option<String> {
    current().map(|context| context.trace_id())
}
