//! Subscriptions: one task each, on a channel of its own over the shared consuming connection.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::StreamExt;
use lapin::{
    Acker, Channel, Connection, Consumer,
    message::Delivery,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::FieldTable,
};
use safelight_domain::retry::Reconnect;
use safelight_queue::{Acknowledge, Message, Queue, QueueError};
use tokio::{runtime::Handle, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    acks::Acks,
    depth, is_not_found,
    link::{Link, failed, within},
    message::{self, Decoded, Undecodable},
    topology,
};

/// After so long without a message a subscription is renewed: see [`End::Silent`].
const SILENCE: Duration = Duration::from_secs(10);
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);
/// For putting one message back. Written or not, nothing is lost: an unsettled message comes again.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where messages come from.
#[derive(Clone, Copy)]
pub(super) enum Source {
    /// A work queue.
    Work(Queue),
    /// The queue of dead letters.
    Dead,
}

impl fmt::Display for Source {
    /// The queue's name on the broker.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Work(queue) => queue.fmt(f),
            Self::Dead => f.write_str(topology::DEAD_QUEUE),
        }
    }
}

impl Source {
    /// The notice in a message. A dead letter keeps the routing key that it was published with: the
    /// name of the queue that it was for.
    fn decode(self, message: &Delivery) -> Result<Decoded, Undecodable> {
        let queue = match self {
            Self::Work(queue) => queue,
            Self::Dead => message.routing_key.as_str().parse()?,
        };
        message::decode(queue, &message.data, &message.properties)
    }
}

/// How forwarding ends without an error.
enum End {
    /// The subscription was dropped.
    Unwanted,
    /// None came for a while. It may be that there are none; but a quorum queue that was deleted and
    /// declared anew within a moment leaves its consumers deaf without a word: the broker counts
    /// messages as delivered to them that they never get. A new consumer costs next to nothing, and
    /// with the old channel such messages go back.
    Silent,
}

/// Feeds one [`safelight_queue::Subscription`].
pub(super) struct Feeder {
    pub(super) link: Link,
    pub(super) source: Source,
    pub(super) prefetch: u16,
    pub(super) sender: mpsc::Sender<Message>,
    pub(super) closed: CancellationToken,
}

impl Feeder {
    /// Delivers until the subscription is dropped or the broker is closed, over as many
    /// connections as it takes.
    pub(super) async fn run(self) {
        let mut reconnect = Reconnect::default();
        let mut told = false;
        loop {
            let connection = tokio::select! {
                () = self.unwanted() => return,
                connection = self.link.connection() => connection,
            };
            let Some(connection) = connection else { return };
            let error = match self.subscribe(&connection).await {
                Ok((channel, consumer)) => {
                    if told {
                        info!(queue = %self.source, "subscribed again");
                        told = false;
                    }
                    match self.forward(&connection, &channel, consumer, &mut reconnect).await {
                        Ok(End::Unwanted) => return,
                        Ok(End::Silent) => continue,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            // Where the connection is gone too, its keeper has said so.
            if !told && connection.status().connected() {
                warn!(queue = %self.source, %error, "subscription lost; trying until it is back");
                told = true;
            }
            drop(connection);
            tokio::select! {
                () = self.unwanted() => return,
                () = tokio::time::sleep(reconnect.next_delay()) => {}
            }
        }
    }

    async fn unwanted(&self) {
        tokio::select! {
            () = self.closed.cancelled() => {}
            () = self.sender.closed() => {}
        }
    }

    async fn subscribe(
        &self,
        connection: &Connection,
    ) -> Result<(Arc<Channel>, Consumer), QueueError> {
        let channel = within(SUBSCRIBE_TIMEOUT, connection.create_channel()).await?;
        topology::declare(&channel).await?;
        // Before consuming: deliveries that come without a limit are buffered without one.
        let qos = channel.basic_qos(self.prefetch, BasicQosOptions::default());
        within(SUBSCRIBE_TIMEOUT, qos).await?;
        let consume = channel.basic_consume(
            self.source.to_string().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let consumer = within(SUBSCRIBE_TIMEOUT, consume).await?;
        Ok((Arc::new(channel), consumer))
    }

    /// Passes messages on, until none are wanted or none come.
    async fn forward(
        &self,
        connection: &Connection,
        channel: &Arc<Channel>,
        mut consumer: Consumer,
        reconnect: &mut Reconnect,
    ) -> Result<End, QueueError> {
        let acks = Acks::start();
        loop {
            let delivery = tokio::select! {
                () = self.unwanted() => break,
                delivery = timeout(SILENCE, consumer.next()) => delivery,
            };
            let Ok(delivery) = delivery else {
                if self.may_be_deaf(connection, &acks).await? {
                    hand_back(channel, consumer).await;
                    return Ok(End::Silent);
                }
                continue;
            };
            // The stream ends when the broker cancels the consumer, the channel still looking well.
            let delivery = delivery.ok_or(QueueError::Disconnected)?.map_err(failed)?;
            reconnect.reset();
            let Some(message) = self.decode(channel, &acks, delivery).await else { continue };
            let sent = tokio::select! {
                () = self.closed.cancelled() => break,
                sent = self.sender.send(message) => sent,
            };
            if sent.is_err() {
                break;
            }
        }
        hand_back(channel, consumer).await;
        Ok(End::Unwanted)
    }

    /// Whether a silent consumer should be replaced: one without deliveries in hand, and one with
    /// fewer than it may have while more are waiting.
    async fn may_be_deaf(&self, connection: &Connection, acks: &Acks) -> Result<bool, QueueError> {
        let in_hand = acks.in_hand();
        if in_hand == 0 || in_hand >= usize::from(self.prefetch) {
            return Ok(in_hand == 0);
        }
        match depth(connection, &self.source.to_string()).await {
            Ok(waiting) => Ok(waiting > 0),
            Err(error) if is_not_found(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// A message that cannot be read is acknowledged away: the store can rebuild whatever it said,
    /// and putting it back would only bring it again.
    async fn decode(
        &self,
        channel: &Arc<Channel>,
        acks: &Acks,
        delivery: Delivery,
    ) -> Option<Message> {
        let decoded = self.source.decode(&delivery);
        acks.hold(delivery.delivery_tag);
        let held = Held {
            tag: delivery.delivery_tag,
            acker: Some(delivery.acker),
            acks: acks.clone(),
            channel: Arc::clone(channel),
            closed: self.closed.clone(),
        };
        match decoded {
            // Without its generation a message that comes again must not end a running attempt.
            Ok(Decoded { notice, whole }) => {
                Some(Message::new(notice, delivery.redelivered && whole, held))
            }
            Err(error) => {
                warn!(queue = %self.source, %error, "dropped a message that cannot be read");
                Box::new(held).ack().await;
                None
            }
        }
    }
}

/// Cancels, and puts back what the broker had sent ahead. The channel stays open for as long as
/// deliveries on it are in hand.
async fn hand_back(channel: &Channel, mut consumer: Consumer) {
    let cancel = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
    let put_back = async {
        cancel.await?;
        while let Some(message) = consumer.next().await {
            message?.acker.nack(requeue_options()).await?;
        }
        Ok(())
    };
    if let Err(error) = within(SETTLE_TIMEOUT, put_back).await {
        debug!(%error, "cancelled without an answer; messages go back when the channel closes");
    }
}

/// One message in hand. Dropped without an answer it is put back.
struct Held {
    tag: u64,
    /// Taken by the answer.
    acker: Option<Acker>,
    acks: Acks,
    /// Dropping the last handle closes the channel, and with it every delivery.
    channel: Arc<Channel>,
    /// The broker's. A message may outlive the connection in lapin's eyes by a moment.
    closed: CancellationToken,
}

#[async_trait]
impl Acknowledge for Held {
    async fn ack(mut self: Box<Self>) {
        if let Some(acker) = self.acker.take() {
            self.acks.ack(self.tag, acker).await;
        }
    }

    async fn requeue(mut self: Box<Self>) {
        if let Some(acker) = self.acker.take() {
            put_back(&acker, &self.acks, self.tag).await;
        }
    }

    fn is_current(&self) -> bool {
        !self.closed.is_cancelled() && self.acker.as_ref().is_some_and(Acker::usable)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(acker) = self.acker.take().filter(Acker::usable) else { return };
        // Without a runtime the connection is ending, which puts the message back as well.
        if let Ok(runtime) = Handle::try_current() {
            let (channel, acks, tag) = (Arc::clone(&self.channel), self.acks.clone(), self.tag);
            runtime.spawn(async move {
                put_back(&acker, &acks, tag).await;
                drop(channel);
            });
        }
    }
}

fn requeue_options() -> BasicNackOptions {
    BasicNackOptions { requeue: true, multiple: false }
}

async fn put_back(acker: &Acker, acks: &Acks, tag: u64) {
    let answer = timeout(SETTLE_TIMEOUT, acker.nack(requeue_options())).await;
    if matches!(answer, Ok(Ok(true))) {
        acks.let_go(tag);
    } else {
        debug!(?answer, "a message could not be put back and will come back with its channel");
    }
}
