//! The rescuer recovers jobs whose worker died, and jobs whose message was lost.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use safelight_domain::{ErrorCode, Failure};
use safelight_queue::{DynJobQueue, OutboxSignal, Queue, QueueError};
use safelight_store::{ClaimedJob, Jobs, Outbox, Settled, StoreError};

use super::service::{Service, ServiceError};
use crate::retry_policy::{self, RetryPolicy};

/// Leases in one statement.
const BATCH: u32 = 256;

/// The minimum period of all checks.
const SHORTEST_PERIOD: Duration = Duration::from_millis(250);

const LONGEST_LEASE_PERIOD: Duration = Duration::from_secs(10);
const LONGEST_MESSAGE_PERIOD: Duration = Duration::from_mins(1);

/// Fails attempts whose lease ran out.
pub(crate) struct LeaseRescuer {
    jobs: Arc<dyn Jobs>,
    outbox_signal: OutboxSignal,
    retries: RetryPolicy,
    period: Duration,
}

impl LeaseRescuer {
    pub fn new(
        jobs: Arc<dyn Jobs>,
        outbox_signal: OutboxSignal,
        retries: RetryPolicy,
        lease: Duration,
    ) -> Self {
        let period = (lease / 3).clamp(SHORTEST_PERIOD, LONGEST_LEASE_PERIOD);
        Self { jobs, outbox_signal, retries, period }
    }

    pub async fn rescue(&self) -> Result<(), StoreError> {
        loop {
            let expired = self.jobs.expired_leases(BATCH).await?;
            for job in &expired {
                self.fail_attempt(job).await?;
            }
            if !expired.is_empty() {
                self.outbox_signal.notify();
            }
            if expired.len() < BATCH as usize {
                return Ok(());
            }
        }
    }

    async fn fail_attempt(&self, job: &ClaimedJob) -> Result<(), StoreError> {
        let failure = Failure::new(
            ErrorCode::LeaseLost,
            "the worker of this attempt stopped answering: it crashed, hung or lost its network",
        );
        let outcome = self.retries.after_failure(job, failure);
        if self.jobs.settle(&job.lease, &outcome).await? == Settled::Applied {
            retry_policy::record_settled(job, &outcome);
        }
        Ok(())
    }
}

#[async_trait]
impl Service for LeaseRescuer {
    fn name(&self) -> &'static str {
        "lease_rescuer"
    }

    fn action(&self) -> &'static str {
        "rescue jobs of lost workers"
    }

    fn period(&self) -> Option<Duration> {
        Some(self.period)
    }

    async fn run(&mut self) -> Result<(), ServiceError> {
        Ok(self.rescue().await?)
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RescueError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// Publishes jobs again whose message was lost.
pub(crate) struct MessageRescuer {
    outbox: Arc<dyn Outbox>,
    queue: DynJobQueue,
    outbox_signal: OutboxSignal,
    republish_after: Duration,
}

impl MessageRescuer {
    pub fn new(
        outbox: Arc<dyn Outbox>,
        queue: DynJobQueue,
        outbox_signal: OutboxSignal,
        republish_after: Duration,
    ) -> Self {
        Self { outbox, queue, outbox_signal, republish_after }
    }

    /// Publishes again where the broker holds fewer messages than there are published, waiting jobs.
    ///
    /// Messages in a worker's prefetch are in neither count; so under load a few jobs that have waited for
    /// `republish_after_ms` are published twice. That costs a claim that finds nothing. With a margin
    /// instead, a single lost message would never be detected.
    pub async fn rescue(&self) -> Result<(), RescueError> {
        let mut republished = 0;
        for queue in Queue::all() {
            let expected = self.outbox.count_published(queue.kind, queue.lane).await?;
            if expected == 0 {
                continue;
            }
            let missing = expected.saturating_sub(self.queue.depth(queue).await?);
            let limit = u32::try_from(missing).unwrap_or(u32::MAX);
            if limit > 0 {
                let (kind, lane, waited) = (queue.kind, queue.lane, self.republish_after);
                republished += self.outbox.requeue_lost(kind, lane, waited, limit).await?;
            }
        }
        if republished > 0 {
            tracing::info!(jobs = republished, "publishing jobs whose message seems lost");
            self.outbox_signal.notify();
        }
        Ok(())
    }
}

#[async_trait]
impl Service for MessageRescuer {
    fn name(&self) -> &'static str {
        "message_rescuer"
    }

    fn action(&self) -> &'static str {
        "look for lost messages"
    }

    fn period(&self) -> Option<Duration> {
        Some((self.republish_after / 2).clamp(SHORTEST_PERIOD, LONGEST_MESSAGE_PERIOD))
    }

    async fn run(&mut self) -> Result<(), ServiceError> {
        Ok(self.rescue().await?)
    }
}

#[cfg(test)]
mod tests {
    use safelight_domain::{JobKind, Lane};
    use safelight_store::QueueCapacity;

    use super::*;
    use crate::{
        WorkerParts,
        tests::test_worker::{TestWorker, eventually, picture},
    };

    #[tokio::test]
    async fn rescuer_republishes_only_lost_messages() {
        let test = TestWorker::new(&[]).await;
        let WorkerParts { store, queue, outbox_signal, .. } = &test.parts;
        let signal = outbox_signal.clone();
        let rescuer = MessageRescuer::new(store.clone(), queue.clone(), signal, Duration::ZERO);
        test.upload(&picture()).await;
        test.upload(&picture()).await;
        let due = store
            .take_unpublished(&QueueCapacity::each(9), Duration::from_secs(10))
            .await
            .expect("take")
            .due;
        assert_eq!(due.len(), 4);
        queue.publish(&due).await.expect("publish");
        store.mark_published(&due).await.expect("mark");
        rescuer.rescue().await.expect("rescue");
        assert_eq!(store.count_unpublished().await.expect("count"), 0, "nothing was lost");
        let name = Queue { kind: JobKind::Write, lane: Lane::Interactive };
        let mut subscription = queue.subscribe(name, 1).await.expect("subscribe");
        subscription.next().await.expect("a message").ack().await;
        drop(subscription);
        let is_back = async || queue.depth(name).await.expect("depth") == 1;
        eventually("the unacknowledged message returns", is_back).await;
        rescuer.rescue().await.expect("rescue");
        let again = store
            .take_unpublished(&QueueCapacity::each(9), Duration::from_secs(10))
            .await
            .expect("take")
            .due;
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].kind, JobKind::Write);
    }
}
