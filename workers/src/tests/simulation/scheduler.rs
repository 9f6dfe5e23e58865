//! Every task under test waits here before each step that others can see, until the schedule resumes it.
//!
//! The runtime has one thread. The schedule resumes one task at a time, and continues when all tasks wait
//! again. So the seed alone decides what happens.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

/// The step that a task waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WaitPoint {
    /// Call the store.
    Call(&'static str),
    /// Receive the result of the call.
    Response,
    /// Publish this many messages.
    Publish(usize),
    /// Receive the confirm, or ask for the depth of a queue.
    Confirm,
    /// Acknowledge the delivery with this tag.
    Ack(u64),
    /// End an attempt.
    EndAttempt,
}

/// How the step ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// It succeeds.
    Proceed,
    /// It fails, or its response is lost.
    Fail,
    /// Only this many messages are published, and no confirm arrives.
    FailAfter(usize),
    EndAttempt(Ending),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Success,
    Transient,
    Permanent,
    Panic,
    /// The handler asks for a retry, even if no attempt is left.
    AsksForRetry,
}

/// A waiting task.
pub(super) struct Waiting {
    pub process: usize,
    pub point: WaitPoint,
    pub label: String,
    decision: oneshot::Sender<Decision>,
}

impl Waiting {
    pub fn resume(self, decision: Decision) {
        // The task may have been cancelled.
        let _ = self.decision.send(decision);
    }
}

#[derive(Default)]
pub(super) struct Scheduler {
    waiting: Mutex<Vec<Waiting>>,
    /// Notified after each call of the store.
    pub call_finished: Notify,
}

impl Scheduler {
    pub async fn wait_for_turn(&self, process: usize, point: WaitPoint, label: String) -> Decision {
        let (decision, decided) = oneshot::channel();
        self.lock().push(Waiting { process, point, label, decision });
        match decided.await {
            Ok(decision) => decision,
            // The simulation has ended.
            Err(_) => std::future::pending().await,
        }
    }

    /// The indices of the waiting tasks that `wanted` selects. Sorted, because the order in which tokio
    /// polls tasks is partly random.
    pub fn matching(&self, wanted: impl Fn(&Waiting) -> bool) -> Vec<usize> {
        let mut waiting = self.lock();
        waiting.retain(|task| !task.decision.is_closed());
        waiting.sort_by(|a, b| (a.process, &a.label).cmp(&(b.process, &b.label)));
        (0..waiting.len()).filter(|&index| wanted(&waiting[index])).collect()
    }

    pub fn take(&self, index: usize) -> Waiting {
        self.lock().remove(index)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
