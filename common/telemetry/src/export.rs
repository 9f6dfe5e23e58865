//! Exports finished spans to the collector: a bounded queue, and one task that sends batches. It never blocks the
//! process: spans that do not fit into the queue, or that the collector does not accept in time, are dropped and
//! counted.

use std::time::{Duration, Instant};

use metrics::counter;
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanExporter as _, SpanProcessor},
};
use safelight_config::HttpUrl;
use tokio::{
    sync::{Mutex, mpsc},
    task::JoinHandle,
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

/// Maximum number of queued spans; about 4 MB.
const QUEUE: usize = 4_096;
/// Maximum number of spans in one request.
const BATCH: usize = 512;
/// How long the first span of a batch waits for more.
const LINGER: Duration = Duration::from_secs(1);
/// For one request. If the collector hangs, the spans of this time are lost.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// For all remaining spans at shutdown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Minimum time between two log lines about an unavailable collector.
const LOG_PERIOD: Duration = Duration::from_mins(1);

/// The sending side of the queue, for finished spans.
#[derive(Debug)]
pub(super) struct Queue(mpsc::Sender<SpanData>);

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.0.try_send(span).is_err() {
            count("dropped", 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The exporting task.
pub(super) struct Exporting {
    /// Cancelled at shutdown: the task exports what is queued and ends.
    ending: CancellationToken,
    /// Taken by the first call of [`Exporting::finish`].
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Exporting {
    /// Sends the queued spans for at most [`FLUSH_TIMEOUT`], and ends.
    pub async fn finish(&self) {
        self.ending.cancel();
        if let Some(mut task) = self.task.lock().await.take()
            && timeout(FLUSH_TIMEOUT, &mut task).await.is_err()
        {
            task.abort();
            tracing::warn!("the collector did not accept the last spans in time; they are lost");
        }
    }
}

/// Starts the export to the collector at `endpoint`. Must be called within a runtime.
pub(super) fn start(endpoint: &HttpUrl, resource: &Resource) -> Result<(Queue, Exporting), String> {
    let client = reqwest::Client::builder()
        .timeout(EXPORT_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| error.to_string())?;
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", endpoint.as_str()))
        .with_timeout(EXPORT_TIMEOUT)
        // Its retries would block the thread.
        .with_retry_policy(RetryPolicy::disabled())
        .build()
        .map_err(|error| error.to_string())?;
    exporter.set_resource(resource);
    let (sender, spans) = mpsc::channel(QUEUE);
    let ending = CancellationToken::new();
    let task = tokio::spawn(run(exporter, spans, ending.clone()));
    Ok((Queue(sender), Exporting { ending, task: Mutex::new(Some(task)) }))
}

async fn run(
    exporter: SpanExporter,
    mut spans: mpsc::Receiver<SpanData>,
    ending: CancellationToken,
) {
    let mut health = CollectorHealth::default();
    loop {
        let mut batch = Vec::new();
        collect(&mut spans, &mut batch, &ending).await;
        if batch.is_empty() {
            return;
        }
        let count_of_spans = batch.len() as u64;
        let sent = timeout(EXPORT_TIMEOUT, exporter.export(batch)).await;
        match sent {
            Ok(Ok(())) => {
                count("exported", count_of_spans);
                health.recovered();
            }
            Ok(Err(error)) => health.failed(count_of_spans, &error.to_string()),
            Err(_) => health.failed(count_of_spans, "no response in time"),
        }
    }
}

/// Takes a batch from the queue. The batch is empty only at shutdown.
async fn collect(
    spans: &mut mpsc::Receiver<SpanData>,
    batch: &mut Vec<SpanData>,
    ending: &CancellationToken,
) {
    tokio::select! {
        biased;
        _ = spans.recv_many(batch, BATCH) => {}
        () = ending.cancelled() => return,
    }
    let full_at = tokio::time::Instant::now() + LINGER;
    while batch.len() < BATCH && !ending.is_cancelled() {
        let room = BATCH - batch.len();
        tokio::select! {
            taken = spans.recv_many(batch, room) => if taken == 0 { return },
            () = ending.cancelled() => {}
            () = sleep_until(full_at) => return,
        }
    }
}

/// Logs lost spans, at most once per [`LOG_PERIOD`].
#[derive(Default)]
struct CollectorHealth {
    last_logged: Option<Instant>,
    /// Spans lost since the last log line.
    lost: u64,
    failing: bool,
}

impl CollectorHealth {
    fn failed(&mut self, spans: u64, error: &str) {
        count("failed", spans);
        self.lost += spans;
        self.failing = true;
        if self.last_logged.is_none_or(|last| last.elapsed() >= LOG_PERIOD) {
            tracing::warn!(
                error,
                spans = self.lost,
                "the collector does not accept spans; they are lost"
            );
            self.last_logged = Some(Instant::now());
            self.lost = 0;
        }
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.failing) {
            tracing::info!("the collector accepts spans again");
        }
    }
}

fn count(result: &'static str, spans: u64) {
    counter!("safelight_trace_spans_total", "result" => result).increment(spans);
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span as _, Tracer, TracerProvider};
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};

    use super::*;

    /// A queue of `size`, with `spans` finished spans added to it.
    fn filled(size: usize, sampler: Sampler, spans: usize) -> mpsc::Receiver<SpanData> {
        let (sender, queued) = mpsc::channel(size);
        let provider = SdkTracerProvider::builder()
            .with_sampler(sampler)
            .with_span_processor(Queue(sender))
            .build();
        let tracer = provider.tracer("test");
        for at in 0..spans {
            tracer.start(at.to_string()).end();
        }
        queued
    }

    #[test]
    fn full_queue_drops_spans_without_blocking() {
        let mut queued = filled(2, Sampler::AlwaysOn, 5);
        let names: Vec<_> = std::iter::from_fn(|| queued.try_recv().ok()).map(|s| s.name).collect();
        assert_eq!(names, ["0", "1"]);
    }

    #[test]
    fn unsampled_spans_are_not_queued() {
        assert!(filled(2, Sampler::AlwaysOff, 1).try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn batch_ends_when_full_after_a_second_or_at_shutdown() {
        let ending = CancellationToken::new();
        let mut queued = filled(QUEUE, Sampler::AlwaysOn, BATCH + 2);
        let started = tokio::time::Instant::now();
        let mut batch = Vec::new();
        collect(&mut queued, &mut batch, &ending).await;
        assert_eq!((batch.len(), started.elapsed()), (BATCH, Duration::ZERO));

        // The sender is dropped, so no more spans can follow.
        batch.clear();
        collect(&mut queued, &mut batch, &ending).await;
        assert_eq!((batch.len(), started.elapsed()), (2, Duration::ZERO));

        let (sender, mut open) = mpsc::channel(QUEUE);
        for span in batch.drain(..) {
            sender.try_send(span).expect("a free place");
        }
        collect(&mut open, &mut batch, &ending).await;
        assert_eq!((batch.len(), started.elapsed() >= LINGER), (2, true));

        batch.clear();
        ending.cancel();
        collect(&mut open, &mut batch, &ending).await;
        assert!(batch.is_empty(), "shutdown ends the wait");
    }
}
