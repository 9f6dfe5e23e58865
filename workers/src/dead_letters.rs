//! Messages that the broker has given up on. The store decides what becomes of their jobs: a message
//! carries nothing that is not there.

use std::time::Duration;

use metrics::counter;
use safelight_queue::Delivery;
use safelight_services::Services;
use safelight_store::StoreError;
use safelight_telemetry::DependencyHealth;
use tokio_util::sync::CancellationToken;

/// Dead letters in hand at once.
const PREFETCH: u16 = 32;

/// Before a job's bell is rung again: whatever wore its message out may still go on.
const REST: Duration = Duration::from_secs(5);

/// Reconciles dead letters until `shutdown`.
pub async fn run(services: Services, shutdown: CancellationToken) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = bury(&services) => {}
    }
}

async fn bury(services: &Services) {
    let trouble = DependencyHealth::new("take dead letters from the broker");
    let mut letters = loop {
        match services.queue.dead_letters(PREFETCH).await {
            Ok(letters) => break letters,
            Err(error) => tokio::time::sleep(trouble.failed(&error)).await,
        }
    };
    trouble.over();
    let trouble = DependencyHealth::new("reconcile dead letters with the database");
    while let Some(letter) = letters.next().await {
        match reconcile(services, &letter).await {
            Ok(()) => {
                trouble.over();
                letter.ack().await;
            }
            Err(error) => {
                letter.requeue().await;
                tokio::time::sleep(trouble.failed(&error)).await;
            }
        }
    }
}

/// A job that still waits gets a new message; one that has ended, or runs, needs none.
async fn reconcile(services: &Services, letter: &Delivery) -> Result<(), StoreError> {
    let job = letter.notice.job;
    let rung = services.store.republish(job, REST).await?;
    tracing::warn!(%job, rung, "the broker gave up on a job's message");
    counter!("safelight_dead_letters_total", "kind" => letter.notice.kind.as_str()).increment(1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use safelight_domain::{JobKind, Lane};
    use safelight_queue::Queue;
    use safelight_store::QueueCapacity;

    use super::*;
    use crate::tests::lab::{Lab, picture};

    #[tokio::test]
    async fn a_waiting_job_gets_a_new_message_and_one_that_ended_does_not() {
        let lab = Lab::new(&[]).await;
        let Services { store, queue, .. } = &lab.services;
        let upload = lab.upload(&picture()).await;
        let due = store
            .take_unpublished(&QueueCapacity::each(9), Duration::from_secs(10))
            .await
            .expect("take")
            .due;
        queue.publish(&due).await.expect("publish");
        store.mark_published(&due).await.expect("mark");
        let name = Queue { kind: JobKind::Write, lane: Lane::Interactive };
        let mut subscription = queue.subscribe(name, 1).await.expect("subscribe");
        let letter = subscription.next().await.expect("a delivery");

        reconcile(&lab.services, &letter).await.expect("reconcile");
        let next = store
            .take_unpublished(&QueueCapacity::each(9), Duration::from_secs(10))
            .await
            .expect("take")
            .next_in;
        assert!(next.is_some_and(|next| next <= REST && next > REST / 2), "{next:?}");

        store.cancel(upload.task).await.expect("cancel");
        reconcile(&lab.services, &letter).await.expect("reconcile");
        let batch = store
            .take_unpublished(&QueueCapacity::each(9), Duration::from_secs(10))
            .await
            .expect("take");
        assert_eq!((batch.due.len(), batch.next_in), (0, None));
    }
}
