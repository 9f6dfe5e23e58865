//! The in-process queue: bounded, with competing consumers, and nothing on disk.
//!
//! Messages are ordered by their publishing number. A returned message keeps its number, so it precedes
//! everything that was published after it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use safelight_domain::JobNotice;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{Acknowledge, JobQueue, Message, Queue, QueueError, Subscription};

/// Maximum number of messages in one queue, which is about 10 MB. The rest stays in the store's outbox.
const CAPACITY: usize = 100_000;

/// Queues inside this process, which end with it.
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
    /// Maximum number of messages in each queue.
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
        // No message ever arrives.
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

    async fn drained_to(&self, queue: Queue, messages: u64) {
        if let Ok(line) = self.line(queue) {
            line.drained_to(usize::try_from(messages).unwrap_or(usize::MAX)).await;
        }
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

/// Moves messages from `line` to one subscription as long as it exists. Can be dropped at any await: a message is
/// either in the line or delivered, and dropping a delivered message returns it to the line.
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
        let unsettled = Unsettled {
            line: Arc::clone(line),
            number,
            notice: Some(queued.notice),
            closed: closed.clone(),
            _permit: permit,
        };
        // On an error the subscription has ended, and dropping the error returns the message.
        let message = Message::new(queued.notice, queued.redelivered, unsettled);
        if sender.send(message).await.is_err() {
            return;
        }
    }
}

/// One queue.
#[derive(Default)]
struct Line {
    waiting: Mutex<Waiting>,
    /// Notified of every added message. All waiting tasks check again, so no notification is lost.
    filled: Notify,
    /// Notified once there are at most [`Waiting::awaited`] messages.
    drained: Notify,
}

#[derive(Default)]
struct Waiting {
    /// By publishing number.
    messages: BTreeMap<u64, Queued>,
    /// The number of the next message published.
    next: u64,
    /// The largest number of messages that a caller of [`Line::drained_to`] waits for.
    awaited: Option<usize>,
}

#[derive(Clone, Copy)]
struct Queued {
    notice: JobNotice,
    redelivered: bool,
}

impl Line {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // No panic can leave it half-changed.
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

    /// Returns a message under its old number, even to a full line: it was counted before, and prefetch limits the
    /// number of delivered messages.
    fn put_back(&self, number: u64, notice: JobNotice) {
        self.waiting().messages.insert(number, Queued { notice, redelivered: true });
        self.filled.notify_waiters();
    }

    async fn take_first(&self) -> (u64, Queued) {
        loop {
            // Created before the check, so that it is notified of messages added after the check.
            let filled = self.filled.notified();
            if let Some(first) = self.pop_first() {
                return first;
            }
            filled.await;
        }
    }

    fn pop_first(&self) -> Option<(u64, Queued)> {
        let mut waiting = self.waiting();
        let first = waiting.messages.pop_first();
        let left = waiting.messages.len();
        if waiting.awaited.take_if(|awaited| left <= *awaited).is_some() {
            self.drained.notify_waiters();
        }
        first
    }

    async fn drained_to(&self, messages: usize) {
        loop {
            // Created before the check, so that it is notified of messages taken after the check.
            let drained = self.drained.notified();
            {
                let mut waiting = self.waiting();
                if waiting.messages.len() <= messages {
                    return;
                }
                waiting.awaited = waiting.awaited.max(Some(messages));
            }
            drained.await;
        }
    }
}

/// A delivered message. Dropping it returns the message, unless it was acknowledged.
struct Unsettled {
    line: Arc<Line>,
    number: u64,
    /// `None` once acknowledged.
    notice: Option<JobNotice>,
    closed: CancellationToken,
    /// Counts against the subscription's prefetch.
    _permit: OwnedSemaphorePermit,
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if let Some(notice) = self.notice.take() {
            self.line.put_back(self.number, notice);
        }
    }
}

#[async_trait]
impl Acknowledge for Unsettled {
    async fn ack(mut self: Box<Self>) {
        self.notice = None;
    }

    async fn requeue(self: Box<Self>) {}

    fn is_current(&self) -> bool {
        !self.closed.is_cancelled()
    }
}
