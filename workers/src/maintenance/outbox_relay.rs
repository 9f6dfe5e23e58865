//! The relay: from the outbox to the broker. A job's row in the outbox is removed only after the
//! broker has confirmed its message, so a message may be duplicated but is never lost.

use std::{future::pending, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::future::select_all;
use safelight_domain::JobNotice;
use safelight_queue::{DynJobQueue, OutboxSignal, Queue, QueueError};
use safelight_store::{Outbox, OutboxBatch, QueueCapacity, StoreError};
use safelight_telemetry::traces;
use tracing::{Span, field::Empty};

use super::service::{Service, ServiceError};

/// Jobs of one queue per publish; larger batches are hardly faster.
const BATCH: u32 = 256;

/// How long taken rows stay hidden from other relays. Publishing waits at most this long too.
const HOLD: Duration = Duration::from_secs(10);

/// Jobs put back into the outbox in one statement.
const UNPUBLISH_BATCH: u32 = 1_000;

/// How long a batch may take that was started before shutdown: no other relay sees its rows during the hold.
const FINISH: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// What a relay takes from the configuration.
pub(crate) struct RelaySettings {
    /// See `relay_poll_ms`.
    pub poll: Duration,
    pub publish_ahead: u32,
    /// The queue's name in traces.
    pub messaging_system: &'static str,
}

/// Publishes due rows of the outbox, and once more at shutdown, so that the last accepted uploads do not wait
/// for another relay. Sleeps until [`OutboxSignal`] notifies, the next row comes due, or `relay_poll_ms` is
/// over.
///
/// Of a backlog only about `publish_ahead` messages wait in each queue, so that a later upload waits for no
/// more than those: the store returns rows of owners and backfills in turn.
pub(crate) struct OutboxRelay {
    outbox: Arc<dyn Outbox>,
    queue: DynJobQueue,
    outbox_signal: OutboxSignal,
    settings: RelaySettings,
    /// How long to wait until the next step.
    pause: Duration,
    /// The broker may have lost messages that count as published in the store.
    forgotten: bool,
    /// Messages that may still be published to each queue before its depth is read again.
    credit: Vec<(Queue, u32)>,
}

impl OutboxRelay {
    /// A relay that has published nothing yet.
    pub fn new(
        outbox: Arc<dyn Outbox>,
        queue: DynJobQueue,
        outbox_signal: OutboxSignal,
        settings: RelaySettings,
    ) -> Self {
        Self {
            forgotten: !queue.survives_restart(),
            outbox,
            queue,
            outbox_signal,
            settings,
            pause: Duration::ZERO,
            // Zero until the depth is read: messages of other relays may be waiting there.
            credit: Queue::all().map(|queue| (queue, 0)).collect(),
        }
    }

    /// Publishes one batch; returns how long until there is more, if that is known.
    pub async fn step(&mut self) -> Result<Option<Duration>, RelayError> {
        if self.forgotten {
            for queue in Queue::all() {
                while self
                    .outbox
                    .requeue_lost(queue.kind, queue.lane, Duration::ZERO, UNPUBLISH_BATCH)
                    .await?
                    > 0
                {}
            }
            self.forgotten = false;
        }
        let refreshed = self.refresh_credit().await;
        let capacity = self
            .credit
            .iter()
            .map(|(queue, credit)| (queue.kind, queue.lane, (*credit).min(BATCH)));
        let capacity = QueueCapacity(capacity.collect());
        let batch = self.outbox.take_unpublished(&capacity, HOLD).await?;
        if batch.due.is_empty() {
            return refreshed.map(|()| batch.next_in);
        }
        safelight_fail_points::hit("relay.taken").await;
        self.spend(&batch.due);
        // Dropped after the confirms, which ends and exports them.
        let spans = self.spans(&batch.due);
        if let Err(error) = self.queue.publish(&batch.due).await {
            for span in &spans {
                span.record("otel.status_code", "error");
            }
            // Only to save time: they become visible again after the hold anyway.
            if let Err(error) = self.outbox.release_taken(&batch.due).await {
                tracing::debug!(%error, "could not return unpublished jobs to the outbox");
            }
            return Err(error.into());
        }
        drop(spans);
        safelight_fail_points::hit("relay.confirmed").await;
        self.outbox.mark_published(&batch.due).await?;
        refreshed.map(|()| self.next_in(&batch))
    }

    /// How long until more can be published, if that is known. Rows that wait for a full queue do not
    /// count.
    fn next_in(&self, batch: &OutboxBatch) -> Option<Duration> {
        let of =
            |queue: &Queue| batch.due.iter().filter(|notice| Queue::of(notice) == *queue).count();
        let has_more = |(queue, credit): &(Queue, u32)| *credit > 0 && of(queue) >= BATCH as usize;
        batch.next_in.filter(|next| !next.is_zero() || self.credit.iter().any(has_more))
    }

    /// Returns once a queue whose credit is used up may get some; never if there is none.
    async fn capacity(&self) {
        let ahead = self.settings.publish_ahead;
        let half = u64::from(ahead - ahead.div_ceil(2));
        let full = self.credit.iter().filter(|(_, credit)| *credit == 0);
        let drained: Vec<_> = full.map(|(queue, _)| self.queue.drained_to(*queue, half)).collect();
        if drained.is_empty() {
            return pending().await;
        }
        select_all(drained).await;
    }

    /// Reads the depth of queues whose credit is used up, so that the jobs of most uploads cost no request. A
    /// queue that is still more than half full gets no credit yet: publishing a backlog a few messages at a
    /// time would cost a statement and a publish each time.
    async fn refresh_credit(&mut self) -> Result<(), RelayError> {
        let ahead = self.settings.publish_ahead;
        let mut failure = None;
        for (queue, credit) in self.credit.iter_mut().filter(|(_, credit)| *credit == 0) {
            match self.queue.depth(*queue).await {
                Ok(depth) => {
                    let room = ahead.saturating_sub(u32::try_from(depth).unwrap_or(u32::MAX));
                    *credit = if room >= ahead.div_ceil(2) { room } else { 0 };
                }
                // It gets no credit; the other queues are still served.
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    fn spend(&mut self, published: &[JobNotice]) {
        for notice in published {
            let found = self.credit.iter_mut().find(|(queue, _)| *queue == Queue::of(notice));
            if let Some((_, credit)) = found {
                *credit = credit.saturating_sub(1);
            }
        }
    }

    /// One span for each message that belongs to a trace, in that trace.
    fn spans(&self, due: &[JobNotice]) -> Vec<Span> {
        if !traces::are_on() {
            return Vec::new();
        }
        let traced = due.iter().filter(|notice| notice.trace.is_some());
        traced.map(|notice| publish_span(self.settings.messaging_system, notice)).collect()
    }
}

#[async_trait]
impl Service for OutboxRelay {
    fn name(&self) -> &'static str {
        "outbox_relay"
    }

    fn action(&self) -> &'static str {
        "publish jobs"
    }

    fn period(&self) -> Option<Duration> {
        None
    }

    async fn run(&mut self) -> Result<(), ServiceError> {
        let next_in = self.step().await?;
        self.pause = next_in.unwrap_or(self.settings.poll).min(self.settings.poll);
        Ok(())
    }

    async fn wait(&mut self) {
        if self.pause.is_zero() {
            return;
        }
        let (signal, pause) = (self.outbox_signal.clone(), self.pause);
        tokio::select! {
            () = signal.notified() => {}
            () = tokio::time::sleep(pause) => {}
            () = self.capacity() => {}
        }
    }

    fn grace(&self) -> Duration {
        FINISH
    }

    async fn stop(&mut self) -> Result<(), ServiceError> {
        self.step().await?;
        Ok(())
    }
}

fn publish_span(messaging_system: &'static str, notice: &JobNotice) -> Span {
    let queue = Queue::of(notice);
    let span = tracing::info_span!(
        target: traces::TARGET,
        "publish",
        otel.name = format!("publish {}", notice.kind),
        otel.kind = "producer",
        otel.status_code = Empty,
        messaging.system = messaging_system,
        messaging.operation.name = "publish",
        messaging.destination.name = %queue,
        messaging.message.id = %notice.job,
        safelight.job = %notice.job,
    );
    traces::continue_from(&span, notice.trace);
    span
}
