//! Messages that the broker has given up on. The store decides whether their jobs are published again.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use metrics::counter;
use safelight_queue::{DynJobQueue, Message, Subscription};
use safelight_store::{Outbox, StoreError};

use super::service::{Service, ServiceError};

/// Unsettled dead letters.
const PREFETCH: u16 = 32;

/// Before a job is published again: the reason why its message became a dead letter may persist.
const REPUBLISH_DELAY: Duration = Duration::from_secs(5);

/// Reconciles dead letters with the store.
pub(crate) struct DeadLetters {
    outbox: Arc<dyn Outbox>,
    queue: DynJobQueue,
    subscription: Option<Subscription>,
    next: Option<Message>,
}

impl DeadLetters {
    pub fn new(outbox: Arc<dyn Outbox>, queue: DynJobQueue) -> Self {
        Self { outbox, queue, subscription: None, next: None }
    }

    /// A waiting job gets a new message; a job that has ended or is running needs none.
    async fn reconcile(&self, letter: &Message) -> Result<(), StoreError> {
        let job = letter.notice.job;
        let republished = self.outbox.requeue_one(job, REPUBLISH_DELAY).await?;
        tracing::warn!(%job, republished, "the broker gave up on a job's message");
        counter!("safelight_dead_letters_total", "kind" => letter.notice.kind.as_str())
            .increment(1);
        Ok(())
    }
}

#[async_trait]
impl Service for DeadLetters {
    fn name(&self) -> &'static str {
        "dead_letters"
    }

    fn action(&self) -> &'static str {
        "reconcile dead letters"
    }

    fn period(&self) -> Option<Duration> {
        None
    }

    /// Subscribes; once that is done, reconciles one letter.
    async fn run(&mut self) -> Result<(), ServiceError> {
        let Some(subscription) = &mut self.subscription else {
            self.subscription = Some(self.queue.dead_letters(PREFETCH).await?);
            return Ok(());
        };
        // After a failure, the next letter is received here: a run without a letter would count as success.
        let letter = match self.next.take() {
            Some(letter) => letter,
            None => receive(subscription).await,
        };
        match self.reconcile(&letter).await {
            Ok(()) => letter.ack().await,
            Err(error) => {
                letter.requeue().await;
                return Err(error.into());
            }
        }
        Ok(())
    }

    async fn wait(&mut self) {
        if let Some(subscription) = &mut self.subscription {
            self.next = Some(receive(subscription).await);
        }
    }
}

/// The next dead letter. Never returns once the queue is closed, because this process is shutting down.
async fn receive(subscription: &mut Subscription) -> Message {
    match subscription.next().await {
        Some(letter) => letter,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use safelight_domain::{JobId, JobKind, JobNotice, Lane};
    use safelight_queue::{Acknowledge, Queue};
    use safelight_store::QueueCapacity;
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        WorkerParts, run_service,
        tests::test_worker::{TestWorker, picture},
    };

    /// A letter that the queue delivers again when it is requeued.
    struct Letter {
        notice: JobNotice,
        sender: mpsc::Sender<Message>,
    }

    impl Letter {
        async fn send(self) {
            let (notice, sender) = (self.notice, self.sender.clone());
            sender.send(Message::new(notice, false, self)).await.expect("the service runs");
        }
    }

    #[async_trait]
    impl Acknowledge for Letter {
        async fn ack(self: Box<Self>) {}

        async fn requeue(self: Box<Self>) {
            self.send().await;
        }

        fn is_current(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn failures_in_a_row_are_one_outage_with_backoff() {
        let test = TestWorker::new(&[]).await;
        let (sender, receiver) = mpsc::channel(1);
        let mut service = DeadLetters::new(test.parts.store.clone(), test.parts.queue.clone());
        service.subscription = Some(Subscription::new(receiver));
        let (job, kind, lane) = (JobId::new(), JobKind::Write, Lane::Interactive);
        let notice = JobNotice { job, kind, lane, generation: 0, trace: None };
        test.store.plan.unavailable.store(true, Ordering::SeqCst);
        let (statuses, shutdown) = (test.statuses.clone(), test.shutdown.clone());
        // Nothing uses the database file while the clock is paused: every call is rejected.
        tokio::time::pause();
        tokio::spawn(run_service(Box::new(service), statuses.clone(), shutdown));
        Letter { notice, sender }.send().await;
        tokio::time::sleep(Duration::from_mins(1)).await;
        let failures = test.store.plan.rejected_calls.load(Ordering::SeqCst);
        // The delays grow to 5 s with jitter; without growth there would be hundreds of failures.
        assert!((5..=35).contains(&failures), "{failures} failures in a minute");
        let status = statuses.snapshot().remove(0);
        assert!(status.last_error.is_some() && status.last_success_at.is_none(), "{status:?}");
    }

    #[tokio::test]
    async fn dead_letter_is_republished_only_for_queued_job() {
        let test = TestWorker::new(&[]).await;
        let WorkerParts { store, queue, .. } = &test.parts;
        let service = DeadLetters::new(store.clone(), queue.clone());
        let upload = test.upload(&picture()).await;
        let due = store
            .take_unpublished(&QueueCapacity::each(9), Duration::from_secs(10))
            .await
            .expect("take")
            .due;
        queue.publish(&due).await.expect("publish");
        store.mark_published(&due).await.expect("mark");
        let name = Queue { kind: JobKind::Write, lane: Lane::Interactive };
        let mut subscription = queue.subscribe(name, 1).await.expect("subscribe");
        let letter = subscription.next().await.expect("a message");

        service.reconcile(&letter).await.expect("reconcile");
        let next = store
            .take_unpublished(&QueueCapacity::each(9), Duration::from_secs(10))
            .await
            .expect("take")
            .next_in;
        assert!(
            next.is_some_and(|next| next <= REPUBLISH_DELAY && next > REPUBLISH_DELAY / 2),
            "{next:?}"
        );

        store.cancel(upload.task).await.expect("cancel");
        service.reconcile(&letter).await.expect("reconcile");
        let batch = store
            .take_unpublished(&QueueCapacity::each(9), Duration::from_secs(10))
            .await
            .expect("take");
        assert_eq!((batch.due.len(), batch.next_in), (0, None));
    }
}
