//! A broker that loses, duplicates, delays and reorders messages, as the schedule decides.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use safelight_domain::{JobId, JobNotice};
use safelight_queue::{Acknowledge, JobQueue, Message, Queue, QueueError, Subscription};
use tokio::sync::mpsc;

use super::{
    scheduler::{Decision, WaitPoint},
    shared::Shared,
    text::short,
};

/// The broker's state, which all connections share.
#[derive(Default)]
pub(super) struct Queues(Mutex<State>);

#[derive(Default)]
pub(super) struct State {
    pub messages: Vec<QueuedMessage>,
    /// Delivered messages that are not acknowledged, by delivery tag.
    pub unacknowledged: BTreeMap<u64, Unacknowledged>,
    pub consumers: Vec<Consumer>,
    /// Every job and generation of which a message was ever confirmed.
    pub confirmed: HashSet<(JobId, u32)>,
    /// A process whose unacknowledged message returned to the queue may still hold the lease of the job.
    may_hold_lease: HashSet<(usize, JobId)>,
    last_tag: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct QueuedMessage {
    pub notice: JobNotice,
    pub redelivered: bool,
}

pub(super) struct Unacknowledged {
    pub message: QueuedMessage,
    pub process: usize,
    consumer: usize,
}

pub(super) struct Consumer {
    pub process: usize,
    queue: Queue,
    prefetch: usize,
    deliveries: mpsc::Sender<Message>,
}

impl Queues {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Every pair of a queued message and a consumer that can receive it now.
    pub fn deliverable(&self, is_alive: impl Fn(usize) -> bool) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        for (at, message) in self.messages.iter().enumerate() {
            let queue = Queue::of(&message.notice);
            for (number, consumer) in self.consumers.iter().enumerate() {
                let prefetched = self
                    .unacknowledged
                    .values()
                    .filter(|message| message.consumer == number)
                    .count();
                let has_capacity =
                    prefetched < consumer.prefetch && consumer.deliveries.capacity() > 0;
                let is_connected = is_alive(consumer.process) && !consumer.deliveries.is_closed();
                if consumer.queue == queue && has_capacity && is_connected {
                    pairs.push((at, number));
                }
            }
        }
        pairs
    }

    /// Delivers a message; leaves a copy of it in the queue if `keep_copy`.
    pub fn deliver(
        &mut self,
        shared: &Arc<Shared>,
        (at, consumer): (usize, usize),
        keep_copy: bool,
    ) -> Option<Message> {
        let queued = if keep_copy { self.messages[at] } else { self.messages.remove(at) };
        self.last_tag += 1;
        let tag = self.last_tag;
        let process = self.consumers[consumer].process;
        self.unacknowledged.insert(tag, Unacknowledged { message: queued, process, consumer });
        let acknowledge =
            DeliveredMessage { shared: shared.clone(), process, tag, notice: queued.notice };
        let message = Message::new(queued.notice, queued.redelivered, acknowledge);
        // On failure, the caller drops the message without holding the lock: that returns it to the queue.
        self.consumers[consumer].deliveries.try_send(message).err().map(|error| match error {
            mpsc::error::TrySendError::Full(message)
            | mpsc::error::TrySendError::Closed(message) => message,
        })
    }

    /// A process lost its connection: its unacknowledged messages are delivered again.
    pub fn disconnect(&mut self, process: usize) {
        let tags: Vec<u64> = self
            .unacknowledged
            .iter()
            .filter(|(_, message)| message.process == process)
            .map(|(&tag, _)| tag)
            .collect();
        for tag in tags {
            self.return_to_queue(tag);
        }
    }

    /// The job of a delivered message, unless its process has another message of that job, or had one that
    /// returned to the queue.
    pub fn last_message_of_job(&self, tag: u64) -> Option<JobId> {
        let delivered = self.unacknowledged.get(&tag)?;
        let (process, job) = (delivered.process, delivered.message.notice.job);
        let has_another = self.unacknowledged.iter().any(|(&other_tag, other)| {
            other_tag != tag && other.process == process && other.message.notice.job == job
        });
        (!has_another && !self.may_hold_lease.contains(&(process, job))).then_some(job)
    }

    /// All messages are lost.
    pub fn wipe(&mut self) {
        for tag in self.unacknowledged.keys().copied().collect::<Vec<_>>() {
            self.return_to_queue(tag);
        }
        self.messages.clear();
    }

    fn return_to_queue(&mut self, tag: u64) {
        if let Some(returned) = self.unacknowledged.remove(&tag) {
            self.may_hold_lease.insert((returned.process, returned.message.notice.job));
            self.messages.push(QueuedMessage { redelivered: true, ..returned.message });
        }
    }

    fn append(&mut self, notices: &[JobNotice]) {
        for &notice in notices {
            self.messages.push(QueuedMessage { notice, redelivered: false });
        }
    }
}

/// How often the depth of a queue is read that is to be drained.
const DEPTH_PERIOD: Duration = Duration::from_millis(10);

/// The connection of one process.
pub(super) struct SimulatedBroker {
    pub shared: Arc<Shared>,
    pub process: usize,
    pub survives_restart: bool,
}

#[async_trait]
impl JobQueue for SimulatedBroker {
    async fn publish(&self, notices: &[JobNotice]) -> Result<(), QueueError> {
        let label = short(&format!("publish {notices:?}"));
        let point = WaitPoint::Publish(notices.len());
        let decision = self.shared.scheduler.wait_for_turn(self.process, point, label).await;
        if let Decision::FailAfter(count) = decision {
            self.shared.queues.lock().append(&notices[..count]);
            return Err(QueueError::TimedOut);
        }
        if decision == Decision::Fail {
            return Err(QueueError::Disconnected);
        }
        {
            let mut queues = self.shared.queues.lock();
            queues.append(notices);
            queues.confirmed.extend(notices.iter().map(|notice| (notice.job, notice.generation)));
        }
        match self
            .shared
            .scheduler
            .wait_for_turn(self.process, WaitPoint::Confirm, "confirm".into())
            .await
        {
            Decision::Fail => Err(QueueError::TimedOut),
            _ => Ok(()),
        }
    }

    async fn subscribe(&self, queue: Queue, prefetch: u16) -> Result<Subscription, QueueError> {
        let prefetch = usize::from(prefetch);
        let (deliveries, receiver) = mpsc::channel(prefetch);
        let consumer = Consumer { process: self.process, queue, prefetch, deliveries };
        self.shared.queues.lock().consumers.push(consumer);
        Ok(Subscription::new(receiver))
    }

    /// [`super::actions::Action::Republish`] simulates the dead letter service.
    async fn dead_letters(&self, _prefetch: u16) -> Result<Subscription, QueueError> {
        Err(QueueError::Disconnected)
    }

    async fn depth(&self, queue: Queue) -> Result<u64, QueueError> {
        let label = format!("depth {queue}");
        let decision =
            self.shared.scheduler.wait_for_turn(self.process, WaitPoint::Confirm, label).await;
        if decision == Decision::Fail {
            return Err(QueueError::TimedOut);
        }
        let is_in_queue = |message: &&QueuedMessage| {
            (message.notice.kind, message.notice.lane) == (queue.kind, queue.lane)
        };
        Ok(self.shared.queues.lock().messages.iter().filter(is_in_queue).count() as u64)
    }

    async fn drained_to(&self, queue: Queue, messages: u64) {
        tokio::time::sleep(DEPTH_PERIOD).await;
        while self.depth(queue).await.is_ok_and(|depth| depth > messages) {
            tokio::time::sleep(DEPTH_PERIOD).await;
        }
    }

    async fn check(&self) -> Result<(), QueueError> {
        Ok(())
    }

    fn survives_restart(&self) -> bool {
        self.survives_restart
    }

    async fn close(&self) {}
}

/// A delivered message. Dropping it without an acknowledgement returns it to the queue.
struct DeliveredMessage {
    shared: Arc<Shared>,
    process: usize,
    tag: u64,
    notice: JobNotice,
}

#[async_trait]
impl Acknowledge for DeliveredMessage {
    async fn ack(self: Box<Self>) {
        let point = WaitPoint::Ack(self.tag);
        let label = short(&format!("ack {:?}", self.notice));
        // If the acknowledgement is lost, dropping `self` returns the message to the queue.
        if self.is_current()
            && self.shared.scheduler.wait_for_turn(self.process, point, label).await
                == Decision::Proceed
        {
            self.shared.queues.lock().unacknowledged.remove(&self.tag);
        }
    }

    async fn requeue(self: Box<Self>) {}

    fn is_current(&self) -> bool {
        self.shared.queues.lock().unacknowledged.contains_key(&self.tag)
    }
}

impl Drop for DeliveredMessage {
    fn drop(&mut self) {
        self.shared.queues.lock().return_to_queue(self.tag);
    }
}
