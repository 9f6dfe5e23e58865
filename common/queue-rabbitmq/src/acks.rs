//! Acknowledgements of one channel. Those that are ready at the same time go to the broker as one, as
//! far as no earlier delivery is still in hand: that is one entry in a quorum queue's log instead of one
//! for each message.

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

/// For one acknowledgement. Written or not, nothing is lost: an unsettled message comes again.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);

/// Acknowledgements sent together at most.
const BATCH: usize = 256;

/// What is known of the deliveries of one channel; clones share it.
#[derive(Clone)]
pub(super) struct Acks {
    /// The tags of those that are not settled.
    in_hand: Arc<Mutex<BTreeSet<u64>>>,
    ready: mpsc::UnboundedSender<Ready>,
}

/// A delivery to be acknowledged.
struct Ready {
    tag: u64,
    acker: Acker,
    /// Dropped once that was sent.
    #[allow(dead_code)] // dropped with the rest, which is how the waiter learns of it
    until_sent: oneshot::Sender<()>,
}

impl Acks {
    /// Of a new channel. What sends them ends with the last clone.
    pub(super) fn start() -> Self {
        // As many as there are deliveries in hand at most.
        let (ready, receiver) = mpsc::unbounded_channel();
        let in_hand = Arc::default();
        tokio::spawn(send(receiver, Arc::clone(&in_hand)));
        Self { in_hand, ready }
    }

    /// Notes a delivery.
    pub(super) fn hold(&self, tag: u64) {
        lock(&self.in_hand).insert(tag);
    }

    /// Notes that a delivery was put back; only after that was sent, for an acknowledgement of later ones
    /// would go for it as well.
    pub(super) fn let_go(&self, tag: u64) {
        lock(&self.in_hand).remove(&tag);
    }

    /// How many deliveries are not settled.
    pub(super) fn in_hand(&self) -> usize {
        lock(&self.in_hand).len()
    }

    /// Acknowledges a delivery, perhaps with others.
    pub(super) async fn ack(&self, tag: u64, acker: Acker) {
        let (until_sent, sent) = oneshot::channel();
        if self.ready.send(Ready { tag, acker, until_sent }).is_ok() {
            // Nothing is ever said there: it ends when the acknowledgement was sent.
            let _ = sent.await;
        }
    }
}

async fn send(mut ready: mpsc::UnboundedReceiver<Ready>, in_hand: Arc<Mutex<BTreeSet<u64>>>) {
    let mut batch = Vec::new();
    while ready.recv_many(&mut batch, BATCH).await > 0 {
        batch.sort_unstable_by_key(|one| one.tag);
        let first_left = {
            let mut in_hand = lock(&in_hand);
            for one in &batch {
                in_hand.remove(&one.tag);
            }
            in_hand.first().copied().unwrap_or(u64::MAX)
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
    // `Ok(false)`: the channel was gone already.
    if !matches!(answer, Ok(Ok(true))) {
        debug!(?answer, "messages could not be acknowledged and will come again");
    }
}

fn lock(in_hand: &Mutex<BTreeSet<u64>>) -> MutexGuard<'_, BTreeSet<u64>> {
    // Nothing can panic half-way through a change of it.
    in_hand.lock().unwrap_or_else(PoisonError::into_inner)
}
