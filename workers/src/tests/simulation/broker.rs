//! A broker that drops, doubles, delays and reorders, as the schedule says.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use safelight_domain::{JobId, JobNotice};
use safelight_queue::{Acknowledge, JobQueue, Message, Queue, QueueError, Subscription};
use tokio::sync::mpsc;

use super::{
    shared::Shared,
    text::short,
    turnstile::{Spot, Verdict},
};

/// What the broker holds.
#[derive(Default)]
pub(super) struct Queues(Mutex<State>);

#[derive(Default)]
pub(super) struct State {
    pub messages: Vec<Queued>,
    /// Delivered and not acknowledged, by delivery tag.
    pub unsettled: BTreeMap<u64, Unsettled>,
    pub consumers: Vec<Consumer>,
    /// Every job and generation whose message was ever confirmed.
    pub confirmed: HashSet<(JobId, u32)>,
    /// Processes that may hold the lease of a job whose message went back from them unsettled.
    shaken: HashSet<(usize, JobId)>,
    last_tag: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Queued {
    pub notice: JobNotice,
    pub redelivered: bool,
}

pub(super) struct Unsettled {
    pub message: Queued,
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
    /// Every message that can be delivered now, with every consumer that has room for it.
    pub fn deliverable(&self, alive: impl Fn(usize) -> bool) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        for (at, message) in self.messages.iter().enumerate() {
            let queue = Queue::of(&message.notice);
            for (number, consumer) in self.consumers.iter().enumerate() {
                let held = self.unsettled.values().filter(|one| one.consumer == number).count();
                let room = held < consumer.prefetch && consumer.deliveries.capacity() > 0;
                let there = alive(consumer.process) && !consumer.deliveries.is_closed();
                if consumer.queue == queue && room && there {
                    pairs.push((at, number));
                }
            }
        }
        pairs
    }

    /// Delivers a message; leaves a copy of it in the queue if `doubled`.
    pub fn deliver(
        &mut self,
        shared: &Arc<Shared>,
        (at, consumer): (usize, usize),
        doubled: bool,
    ) -> Option<Message> {
        let queued = if doubled { self.messages[at] } else { self.messages.remove(at) };
        self.last_tag += 1;
        let tag = self.last_tag;
        let process = self.consumers[consumer].process;
        self.unsettled.insert(tag, Unsettled { message: queued, process, consumer });
        let answer = Tagged { shared: shared.clone(), process, tag, notice: queued.notice };
        let message = Message::new(queued.notice, queued.redelivered, answer);
        // Given back to be dropped where the lock is free: that puts the message back.
        self.consumers[consumer].deliveries.try_send(message).err().map(|error| match error {
            mpsc::error::TrySendError::Full(message)
            | mpsc::error::TrySendError::Closed(message) => message,
        })
    }

    /// The process has lost its connection: what it has not acknowledged is delivered again.
    pub fn disconnect(&mut self, process: usize) {
        let tags: Vec<u64> = self
            .unsettled
            .iter()
            .filter(|(_, one)| one.process == process)
            .map(|(&tag, _)| tag)
            .collect();
        for tag in tags {
            self.put_back(tag);
        }
    }

    /// The job of a delivered message, if its process holds no other of that job, nor ever held one that went
    /// back.
    pub fn last_of_its_job(&self, tag: u64) -> Option<JobId> {
        let one = self.unsettled.get(&tag)?;
        let job = one.message.notice.job;
        let another = self.unsettled.iter().any(|(&other, two)| {
            other != tag && two.process == one.process && two.message.notice.job == job
        });
        (!another && !self.shaken.contains(&(one.process, job))).then_some(job)
    }

    /// Everything in the queues is gone.
    pub fn wipe(&mut self) {
        for tag in self.unsettled.keys().copied().collect::<Vec<_>>() {
            self.put_back(tag);
        }
        self.messages.clear();
    }

    fn put_back(&mut self, tag: u64) {
        if let Some(one) = self.unsettled.remove(&tag) {
            self.shaken.insert((one.process, one.message.notice.job));
            self.messages.push(Queued { redelivered: true, ..one.message });
        }
    }

    fn append(&mut self, notices: &[JobNotice]) {
        for &notice in notices {
            self.messages.push(Queued { notice, redelivered: false });
        }
    }
}

/// One process's connection.
pub(super) struct SimulatedBroker {
    pub shared: Arc<Shared>,
    pub process: usize,
    pub survives_restart: bool,
}

#[async_trait]
impl JobQueue for SimulatedBroker {
    async fn publish(&self, notices: &[JobNotice]) -> Result<(), QueueError> {
        let label = short(&format!("publish {notices:?}"));
        let spot = Spot::Publish(notices.len());
        let verdict = self.shared.turnstile.pass(self.process, spot, label).await;
        if let Verdict::Partly(count) = verdict {
            self.shared.queues.lock().append(&notices[..count]);
            return Err(QueueError::TimedOut);
        }
        if verdict == Verdict::Fail {
            return Err(QueueError::Disconnected);
        }
        {
            let mut queues = self.shared.queues.lock();
            queues.append(notices);
            queues.confirmed.extend(notices.iter().map(|one| (one.job, one.generation)));
        }
        match self.shared.turnstile.pass(self.process, Spot::Confirm, "confirm".into()).await {
            Verdict::Fail => Err(QueueError::TimedOut),
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

    /// Letters reach the store by [`super::actions::Action::Republish`].
    async fn dead_letters(&self, _prefetch: u16) -> Result<Subscription, QueueError> {
        Err(QueueError::Disconnected)
    }

    async fn depth(&self, queue: Queue) -> Result<u64, QueueError> {
        let label = format!("depth {queue}");
        let verdict = self.shared.turnstile.pass(self.process, Spot::Confirm, label).await;
        if verdict == Verdict::Fail {
            return Err(QueueError::TimedOut);
        }
        let of = |one: &&Queued| (one.notice.kind, one.notice.lane) == (queue.kind, queue.lane);
        Ok(self.shared.queues.lock().messages.iter().filter(of).count() as u64)
    }

    async fn check(&self) -> Result<(), QueueError> {
        Ok(())
    }

    fn survives_restart(&self) -> bool {
        self.survives_restart
    }

    async fn close(&self) {}
}

/// One delivered message. Dropped without an answer, it goes back.
struct Tagged {
    shared: Arc<Shared>,
    process: usize,
    tag: u64,
    notice: JobNotice,
}

#[async_trait]
impl Acknowledge for Tagged {
    async fn ack(self: Box<Self>) {
        let spot = Spot::Ack(self.tag);
        let label = short(&format!("ack {:?}", self.notice));
        // A lost acknowledgement: dropping the tag puts the message back.
        if self.is_current()
            && self.shared.turnstile.pass(self.process, spot, label).await == Verdict::Go
        {
            self.shared.queues.lock().unsettled.remove(&self.tag);
        }
    }

    async fn requeue(self: Box<Self>) {}

    fn is_current(&self) -> bool {
        self.shared.queues.lock().unsettled.contains_key(&self.tag)
    }
}

impl Drop for Tagged {
    fn drop(&mut self) {
        self.shared.queues.lock().put_back(self.tag);
    }
}
