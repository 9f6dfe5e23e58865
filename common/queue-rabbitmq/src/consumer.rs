//! Subscriptions: one task and one channel each, over the shared consuming connection.

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

/// A subscription without messages for this long is renewed: see [`End::Silent`].
const SILENCE: Duration = Duration::from_secs(10);
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(10);
/// For returning one message. Without it nothing is lost: an unsettled message is delivered again.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The queue of a subscription.
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
    /// Decodes a message. A dead letter keeps its routing key, which is the name of its original queue.
    fn decode(self, message: &Delivery) -> Result<Decoded, Undecodable> {
        let queue = match self {
            Self::Work(queue) => queue,
            Self::Dead => message.routing_key.as_str().parse()?,
        };
        message::decode(queue, &message.data, &message.properties)
    }
}

/// Why forwarding ended without an error.
enum End {
    /// The subscription was dropped.
    Unwanted,
    /// There were no deliveries for a while. Either there are no messages, or the quorum queue was deleted
    /// and declared again: then its consumers receive nothing, without an error, and the broker counts
    /// messages as delivered that they never receive. A new consumer is cheap, and closing the old channel
    /// returns such messages.
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
    /// Delivers until the subscription is dropped or the queue is closed, and reconnects as often as necessary.
    pub(super) async fn run(self) {
        let mut reconnect = Reconnect::default();
        let mut is_logged = false;
        loop {
            let connection = tokio::select! {
                () = self.unwanted() => return,
                connection = self.link.connection() => connection,
            };
            let Some(connection) = connection else { return };
            let error = match self.subscribe(&connection).await {
                Ok((channel, consumer)) => {
                    if is_logged {
                        info!(queue = %self.source, "subscribed again");
                        is_logged = false;
                    }
                    match self.forward(&connection, &channel, consumer, &mut reconnect).await {
                        Ok(End::Unwanted) => return,
                        Ok(End::Silent) => continue,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            // If the connection is lost as well, its own task logs that.
            if !is_logged && connection.status().connected() {
                warn!(queue = %self.source, %error, "subscription lost; retrying");
                is_logged = true;
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
        // Before consuming, because deliveries would be buffered without a limit.
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

    /// Forwards messages until an [`End`].
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
                if self.may_be_stalled(connection, &acks).await? {
                    return_messages(channel, consumer).await;
                    return Ok(End::Silent);
                }
                continue;
            };
            // The stream ends when the broker cancels the consumer, although the channel is still open.
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
        return_messages(channel, consumer).await;
        Ok(End::Unwanted)
    }

    /// Whether a silent consumer should be replaced: it has no unsettled deliveries, or fewer than its prefetch
    /// although more messages are waiting.
    async fn may_be_stalled(
        &self,
        connection: &Connection,
        acks: &Acks,
    ) -> Result<bool, QueueError> {
        let unsettled_count = acks.unsettled_count();
        if unsettled_count == 0 || unsettled_count >= usize::from(self.prefetch) {
            return Ok(unsettled_count == 0);
        }
        match depth(connection, &self.source.to_string()).await {
            Ok(waiting) => Ok(waiting > 0),
            Err(error) if is_not_found(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Decodes a message. Acknowledges one that cannot be decoded, because the store can restore its contents, and
    /// returning it would only deliver it again.
    async fn decode(
        &self,
        channel: &Arc<Channel>,
        acks: &Acks,
        delivery: Delivery,
    ) -> Option<Message> {
        let decoded = self.source.decode(&delivery);
        acks.hold(delivery.delivery_tag);
        let unsettled = Unsettled {
            tag: delivery.delivery_tag,
            acker: Some(delivery.acker),
            acks: acks.clone(),
            channel: Arc::clone(channel),
            closed: self.closed.clone(),
        };
        match decoded {
            // A redelivered message without its generation must not end a running attempt.
            Ok(Decoded { notice, whole }) => {
                Some(Message::new(notice, delivery.redelivered && whole, unsettled))
            }
            Err(error) => {
                warn!(queue = %self.source, %error, "dropped a message that cannot be read");
                Box::new(unsettled).ack().await;
                None
            }
        }
    }
}

/// Cancels a consumer, and returns prefetched messages. The channel stays open as long as it has unsettled
/// deliveries.
async fn return_messages(channel: &Channel, mut consumer: Consumer) {
    let cancel = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
    let return_all = async {
        cancel.await?;
        while let Some(message) = consumer.next().await {
            message?.acker.nack(requeue_options()).await?;
        }
        Ok(())
    };
    if let Err(error) = within(SETTLE_TIMEOUT, return_all).await {
        debug!(%error, "no response to a cancellation; messages return when the channel closes");
    }
}

/// One unsettled message. Dropping it returns the message.
struct Unsettled {
    tag: u64,
    /// `None` once settled.
    acker: Option<Acker>,
    acks: Acks,
    /// Dropping the last handle closes the channel and invalidates its deliveries.
    channel: Arc<Channel>,
    /// The queue's token. lapin may consider a delivery valid for a moment after its connection closed.
    closed: CancellationToken,
}

#[async_trait]
impl Acknowledge for Unsettled {
    async fn ack(mut self: Box<Self>) {
        if let Some(acker) = self.acker.take() {
            self.acks.ack(self.tag, acker).await;
        }
    }

    async fn requeue(mut self: Box<Self>) {
        if let Some(acker) = self.acker.take() {
            return_message(&acker, &self.acks, self.tag).await;
        }
    }

    fn is_current(&self) -> bool {
        !self.closed.is_cancelled() && self.acker.as_ref().is_some_and(Acker::usable)
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        let Some(acker) = self.acker.take().filter(Acker::usable) else { return };
        // Without a runtime the connection is closing, which also returns the message.
        if let Ok(runtime) = Handle::try_current() {
            let (channel, acks, tag) = (Arc::clone(&self.channel), self.acks.clone(), self.tag);
            runtime.spawn(async move {
                return_message(&acker, &acks, tag).await;
                drop(channel);
            });
        }
    }
}

fn requeue_options() -> BasicNackOptions {
    BasicNackOptions { requeue: true, multiple: false }
}

async fn return_message(acker: &Acker, acks: &Acks, tag: u64) {
    let answer = timeout(SETTLE_TIMEOUT, acker.nack(requeue_options())).await;
    if matches!(answer, Ok(Ok(true))) {
        acks.forget(tag);
    } else {
        debug!(?answer, "could not return a message; it returns when the channel closes");
    }
}
