//! Messages that the broker has given up on. The store decides whether their jobs are published again.

use std::time::Duration;

use async_trait::async_trait;
use metrics::counter;
use safelight_queue::{DynJobQueue, Message, Subscription};
use safelight_store::{DynStore, StoreError};

use super::service::{Service, ServiceError};

/// Unsettled dead letters.
const PREFETCH: u16 = 32;

/// Before a job is published again: the reason why its message became a dead letter may persist.
const REPUBLISH_DELAY: Duration = Duration::from_secs(5);

/// Reconciles dead letters with the store.
pub(crate) struct DeadLetters {
    store: DynStore,
    queue: DynJobQueue,
    subscription: Option<Subscription>,
    next: Option<Message>,
}

impl DeadLetters {
    pub fn new(store: DynStore, queue: DynJobQueue) -> Self {
        Self { store, queue, subscription: None, next: None }
    }

    /// A waiting job gets a new message; a job that has ended or is running needs none.
    async fn reconcile(&self, letter: &Message) -> Result<(), StoreError> {
        let job = letter.notice.job;
        let republished = self.store.requeue_one(job, REPUBLISH_DELAY).await?;
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

    /// Reconciles the letter that [`DeadLetters::wait`] received, if any.
    async fn run(&mut self) -> Result<(), ServiceError> {
        if self.subscription.is_none() {
            self.subscription = Some(self.queue.dead_letters(PREFETCH).await?);
        }
        let Some(letter) = self.next.take() else { return Ok(()) };
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
        self.next = match &mut self.subscription {
            Some(subscription) => subscription.next().await,
            None => None,
        };
        if self.next.is_none() {
            // The queue is closed, because this process is shutting down.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use safelight_domain::{JobKind, Lane};
    use safelight_queue::Queue;
    use safelight_store::QueueCapacity;

    use super::*;
    use crate::{
        WorkerParts,
        tests::test_worker::{TestWorker, picture},
    };

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
