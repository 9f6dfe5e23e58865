//! The job queue: carries the ids of jobs from the outbox to workers. One trait, two backends
//! ([`InProcessQueue`] and the crate `safelight-queue-rabbitmq`), one contract suite
//! (`tests/contract/broker.rs`).
//!
//! A message contains nothing that the store cannot restore. Messages may be lost, duplicated, delayed or
//! reordered: that costs time, never correctness.

mod error;
mod in_process;
mod outbox_signal;

use std::{fmt, str::FromStr, sync::Arc};

use async_trait::async_trait;
use safelight_domain::{JobKind, JobNotice, Lane};
use tokio::sync::mpsc;

pub use error::QueueError;
pub use in_process::InProcessQueue;
pub use outbox_signal::OutboxSignal;

/// A shared handle to the configured backend.
pub type DynJobQueue = Arc<dyn JobQueue>;

/// A work queue: one per kind and lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Queue {
    /// What its jobs do.
    pub kind: JobKind,
    /// Their priority.
    pub lane: Lane,
}

impl Queue {
    /// The queue of a message.
    pub fn of(notice: &JobNotice) -> Self {
        Self { kind: notice.kind, lane: notice.lane }
    }

    /// All queues.
    pub fn all() -> impl Iterator<Item = Self> {
        JobKind::ALL.iter().flat_map(|&kind| Lane::ALL.iter().map(move |&lane| Self { kind, lane }))
    }
}

impl fmt::Display for Queue {
    /// The queue's name on the broker. It contains a version, because the arguments of a durable queue cannot be
    /// changed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "safelight.{}.{}.v1", self.kind, self.lane)
    }
}

/// The name is not that of a queue.
#[derive(Debug, thiserror::Error)]
#[error("unknown queue `{0}`")]
pub struct UnknownQueue(String);

impl FromStr for Queue {
    type Err = UnknownQueue;

    fn from_str(name: &str) -> Result<Self, UnknownQueue> {
        Self::all()
            .find(|queue| queue.to_string() == name)
            .ok_or_else(|| UnknownQueue(name.to_owned()))
    }
}

/// A queue between processes, or inside one.
#[async_trait]
pub trait JobQueue: Send + Sync + 'static {
    /// Publishes all of `notices`, each to the queue of its kind and lane. `Ok` only if the broker is
    /// responsible for every one of them (confirmed, routed, and not returned); after an error any of them
    /// may or may not be in its queue. Waits at most 10 s. Fails immediately without a connection, or if the
    /// broker blocks publishers.
    async fn publish(&self, notices: &[JobNotice]) -> Result<(), QueueError>;

    /// Subscribes to a queue. The subscription survives lost connections: it reconnects with backoff and subscribes
    /// again, until it is dropped or the queue is closed. At most `prefetch` (at least 1) messages are
    /// unacknowledged at any time. Fails only if the queue is closed.
    async fn subscribe(&self, queue: Queue, prefetch: u16) -> Result<Subscription, QueueError>;

    /// Subscribes to dead letters, like [`JobQueue::subscribe`] to a queue. Their jobs might never run unless they are
    /// reconciled with the store. A backend without dead letters delivers none.
    async fn dead_letters(&self, prefetch: u16) -> Result<Subscription, QueueError>;

    /// The number of messages in a queue that are not delivered to a consumer yet. 0 for a deleted queue, which the
    /// next publish or subscribe declares again. Waits at most 15 s.
    async fn depth(&self, queue: Queue) -> Result<u64, QueueError>;

    /// Returns once at most `messages` of a queue are not delivered to a consumer yet, or if that cannot be known now:
    /// then [`JobQueue::depth`] reports why. Safe to drop while it waits.
    async fn drained_to(&self, queue: Queue, messages: u64);

    /// Succeeds if messages can be published now.
    async fn check(&self) -> Result<(), QueueError>;

    /// Whether messages survive the restart of this process. If not, everything queued must be
    /// published again at startup.
    fn survives_restart(&self) -> bool;

    /// Ends subscriptions and connections. Unacknowledged messages return to their queues.
    async fn close(&self);
}

/// Messages of one queue. Dropping it cancels the subscription and returns buffered messages; received messages can
/// still be acknowledged.
pub struct Subscription(mpsc::Receiver<Message>);

impl Subscription {
    /// A subscription to a channel of messages.
    pub fn new(messages: mpsc::Receiver<Message>) -> Self {
        Self(messages)
    }

    /// The next message; `None` once the queue is closed. Skips messages that were buffered when their connection
    /// ended, because the broker delivers them again. Safe to drop while it waits.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            let message = self.0.recv().await?;
            if message.acknowledge.is_current() {
                return Some(message);
            }
        }
    }
}

/// One delivered message, to be acknowledged or requeued exactly once. Dropping it requeues the message as
/// redelivered, now or when the connection ends.
pub struct Message {
    /// The job to claim.
    pub notice: JobNotice,
    /// Whether the message was delivered before without being acknowledged.
    pub redelivered: bool,
    acknowledge: Box<dyn Acknowledge>,
}

impl Message {
    /// A message that is acknowledged by `acknowledge`.
    pub fn new(notice: JobNotice, redelivered: bool, acknowledge: impl Acknowledge) -> Self {
        Self { notice, redelivered, acknowledge: Box::new(acknowledge) }
    }

    /// Removes the message permanently. Only call it after the store contains the outcome. If the connection ended
    /// meanwhile, the message is delivered again, and its claim finds nothing to do.
    pub async fn ack(self) {
        self.acknowledge.ack().await;
    }

    /// Returns the message to its queue for another consumer.
    pub async fn requeue(self) {
        self.acknowledge.requeue().await;
    }
}

/// How a backend acknowledges or requeues one message.
#[async_trait]
pub trait Acknowledge: Send + Sync + 'static {
    /// See [`Message::ack`].
    async fn ack(self: Box<Self>);
    /// See [`Message::requeue`].
    async fn requeue(self: Box<Self>);
    /// Whether it can still be acknowledged: not once its connection or its queue is closed.
    fn is_current(&self) -> bool;
}
