//! The slots of a kind of job: how many of its messages are worked on concurrently, and from which lane.

use std::sync::Arc;

use safelight_domain::{JobKind, Lane};
use safelight_queue::{DynJobQueue, Message, Queue, Subscription};
use safelight_telemetry::DependencyHealth;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The minimum of interactive messages fetched beyond the slots, so that a slot never waits for the network.
/// With more slots, as many as there are slots: a job releases its slot before its end is recorded, and as
/// many short jobs may be waiting for that as are running.
const AHEAD: usize = 4;

/// Bulk messages fetched beyond the slots: no client waits for them, and an idle worker cannot take what
/// is fetched here.
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

/// The permit to work on one message. Work that outlives the attempt holds a share of it.
pub(super) struct Slot {
    _slot: OwnedSemaphorePermit,
    _bulk: Option<OwnedSemaphorePermit>,
}

impl Lanes {
    /// Subscribes to the kind's queues on `lanes`, and retries until it works.
    pub async fn subscribe(
        queue: &DynJobQueue,
        kind: JobKind,
        lanes: &[Lane],
        slots: usize,
        reserve: Reserve,
    ) -> Self {
        let subscription = async |lane: Lane, prefetch: usize| {
            if !lanes.contains(&lane) {
                return None;
            }
            let health = DependencyHealth::new("subscribe to a queue");
            let prefetch = u16::try_from(prefetch).unwrap_or(u16::MAX);
            loop {
                match queue.subscribe(Queue { kind, lane }, prefetch).await {
                    Ok(subscription) => {
                        health.recovered();
                        return Some(subscription);
                    }
                    Err(error) => tokio::time::sleep(health.failed(&error)).await,
                }
            }
        };
        let bulk_slots = reserve.slots(Lane::Bulk, lanes, slots);
        Self {
            interactive: subscription(Lane::Interactive, slots + AHEAD.max(slots)).await,
            // A message counts as fetched until its job has ended: fewer than the slots would
            // leave slots empty.
            bulk: subscription(Lane::Bulk, bulk_slots + BULK_AHEAD).await,
            slots: Arc::new(Semaphore::new(slots)),
            bulk_slots: Arc::new(Semaphore::new(bulk_slots)),
        }
    }

    /// The next message, once a slot is free: an interactive one if there is any. `None` once the queue is
    /// closed. Takes the slot before the message, so that a busy worker holds no messages.
    pub async fn next(&mut self) -> Option<(Message, Slot)> {
        // Neither semaphore is ever closed.
        let slot = self.slots.clone().acquire_owned().await.ok()?;
        let bulk = async {
            let permit = self.bulk_slots.clone().acquire_owned().await.ok()?;
            Some((next_of(&mut self.bulk).await?, permit))
        };
        tokio::select! {
            biased;
            message = next_of(&mut self.interactive) => {
                Some((message?, Slot { _slot: slot, _bulk: None }))
            }
            found = bulk => {
                let (message, permit) = found?;
                Some((message, Slot { _slot: slot, _bulk: Some(permit) }))
            }
        }
    }
}

/// The share of slots that bulk leaves to interactive work.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reserve {
    pub percent: u32,
}

impl Reserve {
    /// How many of `slots` a lane may take if the worker serves the lanes `served`. If it serves interactive
    /// work as well, bulk leaves it the reserve (at least one slot), but always gets one slot itself.
    pub fn slots(self, lane: Lane, served: &[Lane], slots: usize) -> usize {
        if lane == Lane::Interactive || !served.contains(&Lane::Interactive) {
            return slots;
        }
        let reserved = (slots * self.percent as usize).div_ceil(100).max(1);
        slots.saturating_sub(reserved).max(1)
    }
}

async fn next_of(subscription: &mut Option<Subscription>) -> Option<Message> {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_lane_leaves_reserved_slots_to_interactive_lane() {
        for (slots, percent, bulk) in
            [(1, 25, 1), (2, 25, 1), (4, 25, 3), (8, 25, 6), (9, 25, 6), (8, 0, 7), (8, 100, 1)]
        {
            let usable = |lane, served: &[Lane]| Reserve { percent }.slots(lane, served, slots);
            assert_eq!(usable(Lane::Bulk, Lane::ALL), bulk, "{slots} slots, {percent} %");
            assert_eq!(usable(Lane::Interactive, Lane::ALL), slots);
            assert_eq!(usable(Lane::Bulk, &[Lane::Bulk]), slots);
        }
    }
}
