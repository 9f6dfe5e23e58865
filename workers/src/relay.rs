//! The relay: from the outbox to the broker. A job's row in the outbox is removed only after the
//! broker has confirmed its message, so a message may be doubled but never forgotten.

use std::time::Duration;

use safelight_common::{
    broker::{BrokerError, Queue},
    fail_point,
    services::Services,
    store::{Doorbell, StoreError},
    telemetry::traces,
};
use tokio_util::sync::CancellationToken;
use tracing::{Span, field::Empty};

use crate::trouble::Trouble;

/// Jobs per publish; larger batches are hardly faster.
const BATCH: u32 = 256;

/// How long taken rows stay hidden from other relays. Publishing waits at most this long too.
const HOLD: Duration = Duration::from_secs(10);

/// Jobs put back into the outbox in one statement.
const UNPUBLISH_BATCH: u32 = 1_000;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

/// Publishes what the outbox holds, as it comes due, until `shutdown`. Sleeps until
/// [`Services::wake`] rings, the next row comes due, or `relay_poll_ms` is over.
pub async fn run(services: Services, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = relay(&services) => {}
    }
}

async fn relay(services: &Services) {
    let poll = Duration::from_millis(services.config.relay_poll_ms);
    let mut trouble = Trouble::new("publish jobs");
    let mut forgotten = !services.broker.survives_restart();
    loop {
        let pause = match step(services, &mut forgotten).await {
            Ok(next_in) => {
                trouble.over();
                next_in.unwrap_or(poll).min(poll)
            }
            Err(error) => {
                // Rings change nothing about the trouble: they are answered afterwards.
                tokio::time::sleep(trouble.failed(&error)).await;
                continue;
            }
        };
        if !pause.is_zero() {
            let _ = tokio::time::timeout(pause, services.wake.heard()).await;
        }
    }
}

/// Publishes one batch; returns how long until there is more, if that is known. `forgotten` says
/// that the broker may know nothing of what the store holds for published.
pub(crate) async fn step(
    services: &Services,
    forgotten: &mut bool,
) -> Result<Option<Duration>, RelayError> {
    let store = &services.store;
    if *forgotten {
        for queue in Queue::all() {
            while store.unpublish(queue.kind, queue.lane, Duration::ZERO, UNPUBLISH_BATCH).await?
                > 0
            {}
        }
        *forgotten = false;
    }
    let batch = store.take_unpublished(BATCH, HOLD).await?;
    if batch.due.is_empty() {
        return Ok(batch.next_in);
    }
    fail_point::hit("relay.taken").await;
    // They end, and are exported, with the confirms.
    let spans = spans(services, &batch.due);
    let published = services.broker.publish(&batch.due).await;
    if let Err(error) = published {
        for span in &spans {
            span.record("otel.status_code", "error");
        }
        // Only to save time: they show again after the hold anyway.
        if let Err(error) = store.return_unpublished(&batch.due).await {
            tracing::debug!(%error, "could not return unpublished jobs to the outbox");
        }
        return Err(error.into());
    }
    drop(spans);
    fail_point::hit("relay.confirmed").await;
    store.mark_published(&batch.due).await?;
    Ok(batch.next_in)
}

/// One span for each message that belongs to a trace, in that trace.
fn spans(services: &Services, due: &[Doorbell]) -> Vec<Span> {
    if !traces::are_on() {
        return Vec::new();
    }
    let traced = due.iter().filter(|doorbell| doorbell.trace.is_some());
    traced.map(|doorbell| span(services, doorbell)).collect()
}

fn span(services: &Services, doorbell: &Doorbell) -> Span {
    let queue = Queue { kind: doorbell.kind, lane: doorbell.lane };
    let span = tracing::info_span!(
        target: traces::TARGET,
        "publish",
        otel.name = format!("publish {}", doorbell.kind),
        otel.kind = "producer",
        otel.status_code = Empty,
        messaging.system = services.config.queue_url.system(),
        messaging.operation.name = "publish",
        messaging.destination.name = %queue,
        messaging.message.id = %doorbell.job,
        safelight.job = %doorbell.job,
    );
    traces::continue_from(&span, doorbell.trace);
    span
}
