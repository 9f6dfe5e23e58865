//! Acknowledgements of one channel. Those that are ready at the same time are sent as one, as far as no earlier
//! delivery is unsettled: that is one entry in a quorum queue's log instead of one per message.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lapin::{Acker, options::BasicAckOptions};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::debug;

/// For one acknowledgement. Without it nothing is lost: an unsettled message is delivered again.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum number of acknowledgements that are sent as one.
const BATCH: usize = 256;

/// The unsettled deliveries of one channel. Clones share them.
#[derive(Clone)]
pub(super) struct Acks {
    /// The tags of unsettled deliveries.
    unsettled: Arc<Mutex<BTreeSet<u64>>>,
    ready: mpsc::UnboundedSender<Ready>,
}

/// A delivery to be acknowledged.
struct Ready {
    tag: u64,
    acker: Acker,
    /// Dropped once the acknowledgement was sent.
    #[allow(dead_code)] // dropping it notifies the waiting task
    until_sent: oneshot::Sender<()>,
}

impl Acks {
    /// For a new channel. The sending task ends with the last clone.
    pub(super) fn start() -> Self {
        // Prefetch bounds it.
        let (ready, receiver) = mpsc::unbounded_channel();
        let unsettled = Arc::default();
        tokio::spawn(send(receiver, Arc::clone(&unsettled)));
        Self { unsettled, ready }
    }

    /// Records a delivery.
    pub(super) fn hold(&self, tag: u64) {
        lock(&self.unsettled).insert(tag);
    }

    /// Records that a delivery was returned. Only call it after that was sent, because an acknowledgement of later
    /// deliveries would include this one.
    pub(super) fn forget(&self, tag: u64) {
        lock(&self.unsettled).remove(&tag);
    }

    /// The number of unsettled deliveries.
    pub(super) fn unsettled_count(&self) -> usize {
        lock(&self.unsettled).len()
    }

    /// Acknowledges a delivery, possibly together with others.
    pub(super) async fn ack(&self, tag: u64, acker: Acker) {
        let (until_sent, sent) = oneshot::channel();
        if self.ready.send(Ready { tag, acker, until_sent }).is_ok() {
            // Ends with an error when the sender is dropped, which is after the acknowledgement was sent.
            let _ = sent.await;
        }
    }
}

async fn send(mut ready: mpsc::UnboundedReceiver<Ready>, unsettled: Arc<Mutex<BTreeSet<u64>>>) {
    let mut batch = Vec::new();
    while ready.recv_many(&mut batch, BATCH).await > 0 {
        batch.sort_unstable_by_key(|one| one.tag);
        let first_left = {
            let mut unsettled = lock(&unsettled);
            for one in &batch {
                unsettled.remove(&one.tag);
            }
            unsettled.first().copied().unwrap_or(u64::MAX)
        };
        let together = batch.partition_point(|one| one.tag < first_left);
        if let Some(last) = batch[..together].last() {
            send_one(&last.acker, true).await;
        }
        for one in &batch[together..] {
            send_one(&one.acker, false).await;
        }
        batch.clear();
    }
}

/// Acknowledges a delivery, and all before it if `multiple`.
async fn send_one(acker: &Acker, multiple: bool) {
    let answer = timeout(ACK_TIMEOUT, acker.ack(BasicAckOptions { multiple })).await;
    // `Ok(false)`: the channel was closed already.
    if !matches!(answer, Ok(Ok(true))) {
        debug!(?answer, "could not acknowledge messages; they will be delivered again");
    }
}

fn lock(unsettled: &Mutex<BTreeSet<u64>>) -> MutexGuard<'_, BTreeSet<u64>> {
    // No panic can leave it half-changed.
    unsettled.lock().unwrap_or_else(PoisonError::into_inner)
}
