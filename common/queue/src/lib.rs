//! The job queue: carries the ids of jobs from the outbox to workers. One trait, two backends
//! ([`InProcessQueue`] and the crate `safelight-queue-rabbitmq`), one contract suite
//! (`tests/contract/broker.rs`).
//!
//! A message carries nothing that the store cannot rebuild. It may be lost, doubled, late or
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

/// A shared handle to whichever backend the configuration names.
pub type DynJobQueue = Arc<dyn JobQueue>;

/// A work queue: one per kind and lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Queue {
    /// What its jobs do.
    pub kind: JobKind,
    /// Who waits for them.
    pub lane: Lane,
}

impl Queue {
    /// The queue of a message.
    pub fn of(notice: &JobNotice) -> Self {
        Self { kind: notice.kind, lane: notice.lane }
    }

    /// Every queue there is.
    pub fn all() -> impl Iterator<Item = Self> {
        JobKind::ALL.iter().flat_map(|&kind| Lane::ALL.iter().map(move |&lane| Self { kind, lane }))
    }
}

impl fmt::Display for Queue {
    /// The queue's name on the broker. The version is part of it, because a durable queue's
    /// arguments can never be changed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "safelight.{}.{}.v1", self.kind, self.lane)
    }
}

/// A name that is no queue's.
#[derive(Debug, thiserror::Error)]
#[error("no queue has the name `{0}`")]
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
    /// Publishes all of `notices`, each to the queue of its kind and lane. `Ok` only if the
    /// broker has taken responsibility for every one of them (confirmed, routed, and not
    /// returned); on an error any of them may or may not be on its queue. Waits at most 10 s; fails
    /// at once while there is no connection, or the broker is known to block publishers.
    async fn publish(&self, notices: &[JobNotice]) -> Result<(), QueueError>;

    /// Subscribes to a queue. The subscription outlives lost connections: it reconnects with
    /// backoff and resubscribes by itself, until it is dropped or the broker is closed. At most
    /// `prefetch` (at least 1) messages are unacknowledged at any time. Fails only on a closed broker.
    async fn subscribe(&self, queue: Queue, prefetch: u16) -> Result<Subscription, QueueError>;

    /// Subscribes to the messages that the broker has given up on, as [`JobQueue::subscribe`] does to a
    /// queue. Their jobs may wait for ever unless they are reconciled with the store. A broker that never
    /// gives up delivers none.
    async fn dead_letters(&self, prefetch: u16) -> Result<Subscription, QueueError>;

    /// How many messages wait in a queue, not yet handed to a consumer. 0 for a queue that was
    /// deleted: the next publish or subscribe declares it again. Waits at most 15 s.
    async fn depth(&self, queue: Queue) -> Result<u64, QueueError>;

    /// Succeeds if messages can be published now.
    async fn check(&self) -> Result<(), QueueError>;

    /// Whether messages survive the restart of this process. If not, everything queued must be
    /// published again at startup.
    fn survives_restart(&self) -> bool;

    /// Ends subscriptions and connections; messages that were delivered and not acknowledged go back to
    /// their queue.
    async fn close(&self);
}

/// Messages of one queue. Dropping it cancels; messages that were buffered go back, and those in hand
/// can still be acknowledged.
pub struct Subscription(mpsc::Receiver<Message>);

impl Subscription {
    /// A subscription that yields what is sent into the other end of `messages`.
    pub fn new(messages: mpsc::Receiver<Message>) -> Self {
        Self(messages)
    }

    /// The next message; `None` once the broker is closed. Messages that were buffered when their
    /// connection ended are skipped: the broker delivers them again. Safe to drop while it waits.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            let message = self.0.recv().await?;
            if message.acknowledge.is_current() {
                return Some(message);
            }
        }
    }
}

/// One delivered message, to be acknowledged or requeued exactly once. Dropping it does the latter, now or
/// when the connection ends; it comes again as redelivered.
pub struct Message {
    /// The job to look at.
    pub notice: JobNotice,
    /// Whether the broker has delivered this message before and got no answer.
    pub redelivered: bool,
    acknowledge: Box<dyn Acknowledge>,
}

impl Message {
    /// A message that `acknowledge` answers.
    pub fn new(notice: JobNotice, redelivered: bool, acknowledge: impl Acknowledge) -> Self {
        Self { notice, redelivered, acknowledge: Box::new(acknowledge) }
    }

    /// Removes the message for good. Only after the store holds what came of it. If the connection
    /// is gone meanwhile the message comes again, and its claim will find nothing to do.
    pub async fn ack(self) {
        self.acknowledge.ack().await;
    }

    /// Puts the message back on its queue for another consumer.
    pub async fn requeue(self) {
        self.acknowledge.requeue().await;
    }
}

/// How a backend answers one message.
#[async_trait]
pub trait Acknowledge: Send + Sync + 'static {
    /// See [`Message::ack`].
    async fn ack(self: Box<Self>);
    /// See [`Message::requeue`].
    async fn requeue(self: Box<Self>);
    /// Whether it can still be answered; not once the connection or the broker it came from is gone.
    fn is_current(&self) -> bool;
}
