//! Where a kind's deliveries come from, and how many may be worked on.

use std::sync::Arc;

use safelight_domain::{JobKind, Lane};
use safelight_queue::{Delivery, Queue, Subscription};
use safelight_services::Services;
use safelight_telemetry::DependencyHealth;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Interactive deliveries fetched beyond the slots at least, so that a slot never waits for the network.
/// Of many slots, as many again: a job gives its slot back before its end is recorded, and of jobs that
/// are over soon as many may be there as are running.
const AHEAD: usize = 4;

/// Bulk deliveries fetched beyond the slots: nobody waits for them, and what lies here cannot be
/// taken by an idle worker.
const BULK_AHEAD: usize = 1;

/// One kind's subscriptions and slots. Both lanes share the slots, but bulk leaves some of them to
/// interactive, and interactive comes first.
pub(super) struct Lanes {
    interactive: Option<Subscription>,
    bulk: Option<Subscription>,
    slots: Arc<Semaphore>,
    /// The slots that bulk may take.
    bulk_slots: Arc<Semaphore>,
}

/// The right to work on one delivery. Whatever outlives the attempt holds a share of it.
pub(super) struct Slot {
    _slot: OwnedSemaphorePermit,
    _bulk: Option<OwnedSemaphorePermit>,
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
            let trouble = DependencyHealth::new("subscribe to a queue");
            let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
            loop {
                match services.queue.subscribe(Queue { kind, lane }, prefetch).await {
                    Ok(subscription) => {
                        trouble.over();
                        return Some(subscription);
                    }
                    Err(error) => tokio::time::sleep(trouble.failed(&error)).await,
                }
            }
        };
        let bulk_slots = self::slots(Lane::Bulk, lanes, slots, services.config.interactive_reserve);
        Self {
            interactive: subscription(Lane::Interactive, slots + AHEAD.max(slots)).await,
            // A delivery counts as fetched until its job has ended: fewer than the slots would
            // leave slots empty.
            bulk: subscription(Lane::Bulk, bulk_slots + BULK_AHEAD).await,
            slots: Arc::new(Semaphore::new(slots)),
            bulk_slots: Arc::new(Semaphore::new(bulk_slots)),
        }
    }

    /// The next delivery that a slot is free for: an interactive one if there is any. `None` once the
    /// broker is closed. No delivery is taken before its slot, so that a busy worker sits on none.
    pub async fn next(&mut self) -> Option<(Delivery, Slot)> {
        // Neither semaphore is ever closed.
        let slot = self.slots.clone().acquire_owned().await.ok()?;
        let bulk = async {
            let permit = self.bulk_slots.clone().acquire_owned().await.ok()?;
            Some((next_of(&mut self.bulk).await?, permit))
        };
        tokio::select! {
            biased;
            delivery = next_of(&mut self.interactive) => {
                Some((delivery?, Slot { _slot: slot, _bulk: None }))
            }
            found = bulk => {
                let (delivery, permit) = found?;
                Some((delivery, Slot { _slot: slot, _bulk: Some(permit) }))
            }
        }
    }
}

/// How many of `slots` a lane of those that a worker serves may take. Bulk, where there is interactive work as
/// well, all but `reserve` percent and at least one, but one in any case.
pub(super) fn slots(lane: Lane, served: &[Lane], slots: usize, reserve: u32) -> usize {
    if lane == Lane::Interactive || !served.contains(&Lane::Interactive) {
        return slots;
    }
    let reserved = (slots * reserve as usize).div_ceil(100).max(1);
    slots.saturating_sub(reserved).max(1)
}

async fn next_of(subscription: &mut Option<Subscription>) -> Option<Delivery> {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_leaves_interactive_a_share_and_never_starves_itself() {
        for (slots, reserve, bulk) in
            [(1, 25, 1), (2, 25, 1), (4, 25, 3), (8, 25, 6), (9, 25, 6), (8, 0, 7), (8, 100, 1)]
        {
            let may = |lane, served: &[Lane]| super::slots(lane, served, slots, reserve);
            assert_eq!(may(Lane::Bulk, Lane::ALL), bulk, "{slots} slots, {reserve} %");
            assert_eq!(may(Lane::Interactive, Lane::ALL), slots);
            assert_eq!(may(Lane::Bulk, &[Lane::Bulk]), slots);
        }
    }
}
