//! The relay: from the outbox to the broker. A job's row in the outbox is removed only after the
//! broker has confirmed its message, so a message may be doubled but never forgotten.

use std::time::Duration;

use safelight_domain::JobNotice;
use safelight_queue::{Queue, QueueError};
use safelight_services::Services;
use safelight_store::{OutboxBatch, QueueCapacity, StoreError};
use safelight_telemetry::{DependencyHealth, traces};
use tokio_util::sync::CancellationToken;
use tracing::{Span, field::Empty};

/// Jobs of one queue per publish; larger batches are hardly faster.
const BATCH: u32 = 256;

/// How long taken rows stay hidden from other relays. Publishing waits at most this long too.
const HOLD: Duration = Duration::from_secs(10);

/// How often a queue that is full is looked at: whoever drains it tells nobody.
const CONGESTED: Duration = Duration::from_millis(10);

/// Jobs put back into the outbox in one statement.
const UNPUBLISH_BATCH: u32 = 1_000;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// How long a batch may take that was begun before `shutdown`: nobody else sees its rows during the hold.
const FINISH: Duration = Duration::from_secs(5);

/// Publishes what the outbox holds, as it comes due, until `shutdown`; then once more, so that what was accepted
/// last waits for nobody else. Sleeps until [`OutboxSignal`] notifies, the next row comes due, or `relay_poll_ms` is over.
///
/// Of a backlog only about `publish_ahead` messages wait in each queue, so that whoever comes late waits for no
/// more than those: what the outbox holds is taken from owners and backfills in turn.
pub async fn run(services: Services, shutdown: CancellationToken) {
    let too_late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(FINISH).await;
    };
    tokio::select! {
        () = relay(&services, &shutdown) => {}
        () = too_late => tracing::warn!("leaving jobs to other relays"),
    }
}

async fn relay(services: &Services, shutdown: &CancellationToken) {
    let poll = Duration::from_millis(services.config.relay_poll_ms);
    let trouble = DependencyHealth::new("publish jobs");
    let mut relay = Relay::new(services);
    loop {
        let is_last = shutdown.is_cancelled();
        let stepped = relay.step(services).await.map_err(|error| trouble.failed(&error));
        if is_last {
            return;
        }
        let pause = match stepped {
            Ok(next_in) => {
                trouble.over();
                next_in.unwrap_or(poll).min(poll)
            }
            Err(pause) => {
                // Rings change nothing about the trouble: they are answered afterwards.
                shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
                continue;
            }
        };
        if !pause.is_zero() {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = services.outbox_signal.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = relay.room(services) => {}
            }
        }
    }
}

/// What a relay remembers from step to step.
pub(crate) struct Relay {
    /// The broker may know nothing of what the store holds for published.
    forgotten: bool,
    /// Messages that may still be published to each queue before its depth is asked for again.
    credit: Vec<(Queue, u32)>,
}

impl Relay {
    /// A relay that has published nothing yet.
    pub fn new(services: &Services) -> Self {
        Self {
            forgotten: !services.queue.survives_restart(),
            // Nothing before the first look: what others have published may wait there.
            credit: Queue::all().map(|queue| (queue, 0)).collect(),
        }
    }

    /// Publishes one batch; returns how long until there is more, if that is known.
    pub async fn step(&mut self, services: &Services) -> Result<Option<Duration>, RelayError> {
        let store = &services.store;
        if self.forgotten {
            for queue in Queue::all() {
                while store
                    .unpublish(queue.kind, queue.lane, Duration::ZERO, UNPUBLISH_BATCH)
                    .await?
                    > 0
                {}
            }
            self.forgotten = false;
        }
        let asked = self.ask_for_credit(services).await;
        let room = self
            .credit
            .iter()
            .map(|(queue, credit)| (queue.kind, queue.lane, (*credit).min(BATCH)));
        let batch = store.take_unpublished(&QueueCapacity(room.collect()), HOLD).await?;
        if batch.due.is_empty() {
            return asked.map(|()| batch.next_in);
        }
        safelight_fail_points::hit("relay.taken").await;
        self.spend(&batch.due);
        // They end, and are exported, with the confirms.
        let spans = spans(services, &batch.due);
        if let Err(error) = services.queue.publish(&batch.due).await {
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
        safelight_fail_points::hit("relay.confirmed").await;
        store.mark_published(&batch.due).await?;
        asked.map(|()| self.next_in(&batch))
    }

    /// How long until more can be published, if that is known. Rows that wait for room in a full queue
    /// hurry nobody.
    fn next_in(&self, batch: &OutboxBatch) -> Option<Duration> {
        let of = |queue: &Queue| batch.due.iter().filter(|bell| Queue::of(bell) == *queue).count();
        let has_more = |(queue, credit): &(Queue, u32)| *credit > 0 && of(queue) >= BATCH as usize;
        batch.next_in.filter(|next| !next.is_zero() || self.credit.iter().any(has_more))
    }

    /// Returns when a queue that was full has room again; never if none is full.
    async fn room(&mut self, services: &Services) {
        let full = |relay: &Self| relay.credit.iter().filter(|(_, credit)| *credit == 0).count();
        let before = full(self);
        if before == 0 {
            return std::future::pending().await;
        }
        while full(self) == before {
            tokio::time::sleep(CONGESTED).await;
            // An error is met again, and told, by the next step.
            if self.ask_for_credit(services).await.is_err() {
                return;
            }
        }
    }

    /// Looks at the queues whose credit is used up: most uploads' jobs cost no question. A queue that
    /// is still more than half full gets nothing yet: by a few messages at a time a backlog costs a
    /// statement and a publish for each few.
    async fn ask_for_credit(&mut self, services: &Services) -> Result<(), RelayError> {
        let ahead = services.config.publish_ahead;
        let mut failure = None;
        for (queue, credit) in self.credit.iter_mut().filter(|(_, credit)| *credit == 0) {
            match services.queue.depth(*queue).await {
                Ok(depth) => {
                    let room = ahead.saturating_sub(u32::try_from(depth).unwrap_or(u32::MAX));
                    *credit = if room >= ahead.div_ceil(2) { room } else { 0 };
                }
                // It gets nothing, and the other queues are served all the same.
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    fn spend(&mut self, published: &[JobNotice]) {
        for bell in published {
            let found = self.credit.iter_mut().find(|(queue, _)| *queue == Queue::of(bell));
            if let Some((_, credit)) = found {
                *credit = credit.saturating_sub(1);
            }
        }
    }
}

/// One span for each message that belongs to a trace, in that trace.
fn spans(services: &Services, due: &[JobNotice]) -> Vec<Span> {
    if !traces::are_on() {
        return Vec::new();
    }
    let traced = due.iter().filter(|notice| notice.trace.is_some());
    traced.map(|notice| span(services, notice)).collect()
}

fn span(services: &Services, notice: &JobNotice) -> Span {
    let queue = Queue::of(notice);
    let span = tracing::info_span!(
        target: traces::TARGET,
        "publish",
        otel.name = format!("publish {}", notice.kind),
        otel.kind = "producer",
        otel.status_code = Empty,
        messaging.system = services.config.queue_url.system(),
        messaging.operation.name = "publish",
        messaging.destination.name = %queue,
        messaging.message.id = %notice.job,
        safelight.job = %notice.job,
    );
    traces::continue_from(&span, notice.trace);
    span
}
