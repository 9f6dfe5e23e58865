//! Where every task under test waits before it acts on the world, until the schedule lets it.
//!
//! The runtime has one thread, the schedule lets one task through at a time and waits until all
//! stand still again: so a seed decides everything that happens.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

/// What a task is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot {
    /// Call the store.
    Call(&'static str),
    /// Learn what the call came to.
    Answer,
    /// Publish so many messages.
    Publish(usize),
    /// Learn that they are confirmed, or look at a queue.
    Confirm,
    /// Acknowledge the delivery with this tag.
    Ack(u64),
    /// End an attempt.
    End,
}

/// How it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It happens.
    Go,
    /// It does not happen, or its answer is lost.
    Fail,
    /// Of what should happen so much does, and no answer comes.
    Partly(usize),
    /// So ends the attempt.
    End(Ending),
}

/// How an attempt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Success,
    Transient,
    Permanent,
    Panic,
    /// The handler itself asks for another attempt, whether or not there is one left.
    AsksForRetry,
}

/// A task that waits.
pub(super) struct Waiting {
    pub process: usize,
    pub spot: Spot,
    pub label: String,
    verdict: oneshot::Sender<Verdict>,
}

impl Waiting {
    pub fn go(self, verdict: Verdict) {
        // It may have given up waiting.
        let _ = self.verdict.send(verdict);
    }
}

#[derive(Default)]
pub(super) struct Turnstile {
    waiting: Mutex<Vec<Waiting>>,
    /// Told by a call of the store when it is over.
    pub call_over: Notify,
}

impl Turnstile {
    pub async fn pass(&self, process: usize, spot: Spot, label: String) -> Verdict {
        let (verdict, decided) = oneshot::channel();
        self.lock().push(Waiting { process, spot, label, verdict });
        match decided.await {
            Ok(verdict) => verdict,
            // The simulation is over.
            Err(_) => std::future::pending().await,
        }
    }

    /// The places in the line that `wanted` holds for. In an order that does not depend on who came
    /// first: tokio's own wake-ups are partly random.
    pub fn places(&self, wanted: impl Fn(&Waiting) -> bool) -> Vec<usize> {
        let mut waiting = self.lock();
        waiting.retain(|one| !one.verdict.is_closed());
        waiting.sort_by(|a, b| (a.process, &a.label).cmp(&(b.process, &b.label)));
        (0..waiting.len()).filter(|&place| wanted(&waiting[place])).collect()
    }

    pub fn take(&self, place: usize) -> Waiting {
        self.lock().remove(place)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
