//! The rescuer: jobs whose worker died, jobs whose message got lost, old idempotency keys, and
//! workers that have long been silent.
//! Every step is one that any number of rescuers may take at once.

use std::{error::Error, time::Duration};

use safelight_domain::{ErrorCode, Failure};
use safelight_queue::{Queue, QueueError};
use safelight_services::Services;
use safelight_store::{ClaimedJob, Settled, StoreError};
use safelight_telemetry::DependencyHealth;
use tokio_util::sync::CancellationToken;

use crate::{policy, worker::heartbeat};

/// Rows looked at in one statement.
const BATCH: u32 = 256;

/// No check runs more often than this, however short the configured times.
const SHORTEST_PERIOD: Duration = Duration::from_millis(250);

/// How often old tasks are looked for, and the pause between two batches of them.
const PRUNE_PERIOD: Duration = Duration::from_mins(10);
const PRUNE_PAUSE: Duration = Duration::from_millis(100);

/// How often old idempotency keys are forgotten.
const KEYS_PERIOD: Duration = Duration::from_hours(1);

/// How often silent workers are forgotten.
const WORKERS_PERIOD: Duration = Duration::from_mins(1);

/// Rescues until `shutdown`.
pub async fn run(services: Services, shutdown: CancellationToken) {
    let config = &services.config;
    let leases = Duration::from_millis(config.lease_ms / 3);
    let leases = leases.clamp(SHORTEST_PERIOD, Duration::from_secs(10));
    let messages = Duration::from_millis(config.republish_after_ms / 2);
    let messages = messages.clamp(SHORTEST_PERIOD, Duration::from_mins(1));
    let work = async {
        tokio::join!(
            every(leases, "rescue jobs of lost workers", &services, rescue_leases),
            every(messages, "look for lost messages", &services, rescue_messages),
            every(KEYS_PERIOD, "forget old idempotency keys", &services, expire_keys),
            every(PRUNE_PERIOD, "forget old tasks", &services, prune_tasks),
            every(WORKERS_PERIOD, "forget silent workers", &services, heartbeat::forget_silent),
        )
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = work => {}
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RescueError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// Does `work` now and every `period`; after a failure sooner.
pub(crate) async fn every<E, Work>(
    period: Duration,
    what: &'static str,
    services: &Services,
    work: impl Fn(Services) -> Work,
) where
    E: Error + 'static,
    Work: Future<Output = Result<(), E>>,
{
    let trouble = DependencyHealth::new(what);
    loop {
        let pause = match work(services.clone()).await {
            Ok(()) => {
                trouble.over();
                period
            }
            Err(error) => trouble.failed(&error).min(period),
        };
        tokio::time::sleep(pause).await;
    }
}

/// Settles attempts whose lease ran out as failed.
pub(crate) async fn rescue_leases(services: Services) -> Result<(), RescueError> {
    loop {
        let expired = services.store.expired_leases(BATCH).await?;
        for job in &expired {
            rescue(&services, job).await?;
        }
        if !expired.is_empty() {
            services.outbox_signal.notify();
        }
        if expired.len() < BATCH as usize {
            return Ok(());
        }
    }
}

async fn rescue(services: &Services, job: &ClaimedJob) -> Result<(), RescueError> {
    let failure = Failure::new(
        ErrorCode::LeaseLost,
        "the worker of this attempt stopped answering: it crashed, hung or lost its network",
    );
    let outcome = policy::after_failure(job, failure, &services.config);
    if services.store.settle(&job.lease, &outcome).await? == Settled::Applied {
        policy::note_settled(job, &outcome);
    }
    Ok(())
}

/// Publishes anew where the broker holds fewer messages than there are published, waiting jobs.
///
/// Messages in a worker's prefetch are in neither count; so under load a few jobs that have waited
/// for `republish_after_ms` are published twice. That costs a claim that finds nothing. Leaving a
/// margin instead would leave a single lost message lost.
pub(crate) async fn rescue_messages(services: Services) -> Result<(), RescueError> {
    let waited = Duration::from_millis(services.config.republish_after_ms);
    let mut republished = 0;
    for queue in Queue::all() {
        let expected = services.store.count_published(queue.kind, queue.lane).await?;
        if expected == 0 {
            continue;
        }
        let missing = expected.saturating_sub(services.queue.depth(queue).await?);
        let limit = u32::try_from(missing).unwrap_or(u32::MAX);
        if limit > 0 {
            republished += services.store.unpublish(queue.kind, queue.lane, waited, limit).await?;
        }
    }
    if republished > 0 {
        tracing::info!(jobs = republished, "publishing jobs whose message seems lost");
        services.outbox_signal.notify();
    }
    Ok(())
}

pub(crate) async fn expire_keys(services: Services) -> Result<(), RescueError> {
    let age = Duration::from_secs(services.config.idempotency_keep_hours.saturating_mul(3600));
    while services.store.expire_keys(age, BATCH).await? > 0 {}
    Ok(())
}

/// Forgets old tasks in small batches, with pauses for others to write.
pub(crate) async fn prune_tasks(services: Services) -> Result<(), RescueError> {
    let age = Duration::from_hours(services.config.task_keep_days.saturating_mul(24));
    while services.store.prune_tasks(age, BATCH).await? > 0 {
        tokio::time::sleep(PRUNE_PAUSE).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use safelight_domain::{JobKind, Lane};
    use safelight_store::QueueCapacity;

    use super::*;
    use crate::tests::lab::{Lab, picture};

    #[tokio::test]
    async fn only_lost_messages_are_published_again() {
        let lab = Lab::new(&[("SAFELIGHT_REPUBLISH_AFTER_MS", "0")]).await;
        let Services { store, queue, .. } = &lab.services;
        lab.upload(&picture()).await;
        lab.upload(&picture()).await;
        let due = store
            .take_unpublished(&QueueCapacity::each(9), Duration::from_secs(10))
            .await
            .expect("take")
            .due;
        assert_eq!(due.len(), 4);
        queue.publish(&due).await.expect("publish");
        store.mark_published(&due).await.expect("mark");
        rescue_messages(lab.services.clone()).await.expect("rescue");
        assert_eq!(store.count_unpublished().await.expect("count"), 0, "nothing was lost");
        let name = Queue { kind: JobKind::Write, lane: Lane::Interactive };
        let mut subscription = queue.subscribe(name, 1).await.expect("subscribe");
        subscription.next().await.expect("a delivery").ack().await;
        drop(subscription);
        crate::tests::lab::within("the fetched one is back", async {
            while queue.depth(name).await.expect("depth") != 1 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        rescue_messages(lab.services.clone()).await.expect("rescue");
        let again = store
            .take_unpublished(&QueueCapacity::each(9), Duration::from_secs(10))
            .await
            .expect("take")
            .due;
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].kind, JobKind::Write);
    }
}
