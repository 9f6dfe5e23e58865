//! Where a kind's deliveries come from, and how many may be worked on.

use std::sync::Arc;

use safelight_common::{
    broker::{Delivery, Queue, Subscription},
    domain::{JobKind, Lane},
    services::Services,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::trouble::Trouble;

/// Interactive deliveries fetched beyond the slots, so that a slot never waits for the network.
const AHEAD: usize = 4;

/// Bulk deliveries fetched beyond the slots: nobody waits for them, and what lies here cannot be
/// taken by an idle worker.
const BULK_AHEAD: usize = 1;

/// One kind's subscriptions and slots.
pub(super) struct Lanes {
    interactive: Option<Subscription>,
    bulk: Option<Subscription>,
    slots: Arc<Semaphore>,
}

impl Lanes {
    /// Subscribes to the kind's queues on `lanes`, trying until it works.
    pub async fn subscribe(
        services: &Services,
        kind: JobKind,
        lanes: &[Lane],
        slots: usize,
    ) -> Self {
        let subscription = async |lane: Lane, prefetch: usize| {
            if !lanes.contains(&lane) {
                return None;
            }
            let mut trouble = Trouble::new("subscribe to a queue");
            let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
            loop {
                match services.broker.subscribe(Queue { kind, lane }, prefetch).await {
                    Ok(subscription) => {
                        trouble.over();
                        return Some(subscription);
                    }
                    Err(error) => tokio::time::sleep(trouble.failed(&error)).await,
                }
            }
        };
        Self {
            interactive: subscription(Lane::Interactive, slots + AHEAD).await,
            // A delivery counts as fetched until its job has ended: fewer than the slots would
            // leave slots empty where there is only bulk work.
            bulk: subscription(Lane::Bulk, slots + BULK_AHEAD).await,
            slots: Arc::new(Semaphore::new(slots)),
        }
    }

    /// A slot. Taken before a delivery is, so that a busy worker sits on none.
    pub async fn slot(&self) -> Arc<OwnedSemaphorePermit> {
        match self.slots.clone().acquire_owned().await {
            Ok(slot) => Arc::new(slot),
            // The semaphore is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// The next delivery: an interactive one if there is any. `None` once the broker is closed.
    pub async fn next(&mut self) -> Option<Delivery> {
        tokio::select! {
            biased;
            delivery = next_of(&mut self.interactive) => delivery,
            delivery = next_of(&mut self.bulk) => delivery,
        }
    }
}

async fn next_of(subscription: &mut Option<Subscription>) -> Option<Delivery> {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}
