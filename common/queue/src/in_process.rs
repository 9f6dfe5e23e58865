//! The in-process queue: bounded, competing consumers, nothing on disk.
//!
//! Each waiting message is filed under the number it was published with. A message that comes back
//! takes its old place again, ahead of everything published after it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use safelight_domain::JobNotice;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{Acknowledge, JobQueue, Message, Queue, QueueError, Subscription};

/// Messages that may wait in one queue; about 10 MB each at most. What does not fit stays in the
/// store's outbox.
const CAPACITY: usize = 100_000;

/// Queues inside this process. They end with it.
pub struct InProcessQueue {
    lines: Vec<(Queue, Arc<Line>)>,
    closed: CancellationToken,
}

impl Default for InProcessQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl InProcessQueue {
    /// Messages that each queue holds at most.
    pub const CAPACITY: usize = CAPACITY;

    /// Empty queues.
    pub fn new() -> Self {
        Self {
            lines: Queue::all().map(|queue| (queue, Arc::default())).collect(),
            closed: CancellationToken::new(),
        }
    }

    fn line(&self, queue: Queue) -> Result<&Arc<Line>, QueueError> {
        let found = self.lines.iter().find(|(name, _)| *name == queue);
        found.map(|(_, line)| line).ok_or(QueueError::Disconnected)
    }

    fn ensure_open(&self) -> Result<(), QueueError> {
        if self.closed.is_cancelled() { Err(QueueError::Disconnected) } else { Ok(()) }
    }
}

#[async_trait]
impl JobQueue for InProcessQueue {
    async fn publish(&self, notices: &[JobNotice]) -> Result<(), QueueError> {
        self.ensure_open()?;
        for notice in notices {
            self.line(Queue::of(notice))?.append(*notice)?;
        }
        Ok(())
    }

    async fn subscribe(&self, queue: Queue, prefetch: u16) -> Result<Subscription, QueueError> {
        self.ensure_open()?;
        let prefetch = usize::from(prefetch.max(1));
        let (sender, receiver) = mpsc::channel(prefetch);
        let (line, closed) = (Arc::clone(self.line(queue)?), self.closed.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = closed.cancelled() => {}
                () = sender.closed() => {}
                () = feed(&line, &sender, prefetch, &closed) => {}
            }
        });
        Ok(Subscription::new(receiver))
    }

    async fn dead_letters(&self, _prefetch: u16) -> Result<Subscription, QueueError> {
        self.ensure_open()?;
        let (sender, receiver) = mpsc::channel(1);
        let closed = self.closed.clone();
        // Nothing ever comes, until the end.
        tokio::spawn(async move {
            tokio::select! {
                () = closed.cancelled() => {}
                () = sender.closed() => {}
            }
        });
        Ok(Subscription::new(receiver))
    }

    async fn depth(&self, queue: Queue) -> Result<u64, QueueError> {
        Ok(self.line(queue)?.waiting().messages.len() as u64)
    }

    async fn check(&self) -> Result<(), QueueError> {
        self.ensure_open()
    }

    fn survives_restart(&self) -> bool {
        false
    }

    async fn close(&self) {
        self.closed.cancel();
    }
}

/// Moves messages from `line` to one subscription for as long as it listens. May be dropped at any
/// await: a message is either on the line or handed out, and a dropped one returns to the line.
async fn feed(
    line: &Arc<Line>,
    sender: &mpsc::Sender<Message>,
    prefetch: usize,
    closed: &CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(prefetch));
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let (number, queued) = line.take_first().await;
        let held = Held {
            line: Arc::clone(line),
            number,
            notice: Some(queued.notice),
            closed: closed.clone(),
            _permit: permit,
        };
        // On an error the subscription is gone, and the message in the error is dropped.
        let message = Message::new(queued.notice, queued.redelivered, held);
        if sender.send(message).await.is_err() {
            return;
        }
    }
}

/// One queue.
#[derive(Default)]
struct Line {
    waiting: Mutex<Waiting>,
    /// Notified of every message that is put in. All who wait look again, so no wake-up is lost.
    filled: Notify,
}

#[derive(Default)]
struct Waiting {
    /// By publishing number.
    messages: BTreeMap<u64, Queued>,
    /// The number of the next message published.
    next: u64,
}

#[derive(Clone, Copy)]
struct Queued {
    notice: JobNotice,
    redelivered: bool,
}

impl Line {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // No code that holds the lock can leave it half-changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, notice: JobNotice) -> Result<(), QueueError> {
        {
            let mut waiting = self.waiting();
            if waiting.messages.len() >= CAPACITY {
                return Err(QueueError::Full);
            }
            let number = waiting.next;
            waiting.next += 1;
            waiting.messages.insert(number, Queued { notice, redelivered: false });
        }
        self.filled.notify_waiters();
        Ok(())
    }

    /// Files a message under its old number. Not refused when full: it was counted once before,
    /// and prefetches bound how many can be out.
    fn put_back(&self, number: u64, notice: JobNotice) {
        self.waiting().messages.insert(number, Queued { notice, redelivered: true });
        self.filled.notify_waiters();
    }

    async fn take_first(&self) -> (u64, Queued) {
        loop {
            // Made before the look, so that a message put in after it is noticed.
            let filled = self.filled.notified();
            if let Some(first) = self.waiting().messages.pop_first() {
                return first;
            }
            filled.await;
        }
    }
}

/// A message that was handed out. Dropping it puts the message back, unless it was acknowledged.
struct Held {
    line: Arc<Line>,
    number: u64,
    /// Taken by the acknowledgement.
    notice: Option<JobNotice>,
    closed: CancellationToken,
    /// Counts against the subscription's prefetch.
    _permit: OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(notice) = self.notice.take() {
            self.line.put_back(self.number, notice);
        }
    }
}

#[async_trait]
impl Acknowledge for Held {
    async fn ack(mut self: Box<Self>) {
        self.notice = None;
    }

    async fn requeue(self: Box<Self>) {}

    fn is_current(&self) -> bool {
        !self.closed.is_cancelled()
    }
}
