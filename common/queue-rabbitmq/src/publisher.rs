//! Publishes with confirms. One task owns the channel: two tasks that publish on the same channel can receive each
//! other's confirms, which loses messages.
//!
//! Calls that arrive while a batch waits for its confirms form the next batch. Batches never overlap: the client
//! library attaches a returned message to the next confirm, so it only shows that the batch as a whole failed.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use lapin::{
    Channel, Confirmation, Connection, PublisherConfirm, message::BasicReturnMessage,
    options::ConfirmSelectOptions,
};
use safelight_domain::JobNotice;
use safelight_domain::retry::Reconnect;
use safelight_queue::{Queue, QueueError};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{
    link::{Link, failed, within},
    message, topology,
};

/// From the call to the last confirm.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls that may wait for the next batch; others wait for space.
const WAITING_CALLS: usize = 256;
/// No call is added to a batch with this many messages.
const BATCH: usize = 1024;
/// Maximum number of messages passed to the connection and not yet written to its socket.
const UNWRITTEN: usize = 256;
/// How often a blocked connection is checked.
const BLOCKED_POLL: Duration = Duration::from_millis(250);

struct Call {
    notices: Vec<JobNotice>,
    answer: oneshot::Sender<Result<(), QueueError>>,
}

/// The calling side.
pub(super) struct Publisher {
    link: Link,
    calls: mpsc::Sender<Call>,
    /// Whether the channel is open, and if not why not.
    channel: watch::Receiver<Result<(), QueueError>>,
}

impl Publisher {
    /// Starts the publishing task on `link`. It ends with `closed`, or when the publisher is dropped.
    pub(super) fn start(link: Link, tasks: &TaskTracker, closed: CancellationToken) -> Self {
        let (calls, receiver) = mpsc::channel(WAITING_CALLS);
        let (sender, channel) = watch::channel(Err(QueueError::Disconnected));
        let task = Task { link: link.clone(), calls: receiver, channel: sender, closed };
        tasks.spawn(task.run());
        Self { link, calls, channel }
    }

    /// See [`safelight_queue::JobQueue::check`].
    pub(super) fn check(&self) -> Result<(), QueueError> {
        match self.link.now() {
            Some(connection) if connection.status().blocked() => Err(QueueError::TimedOut),
            Some(_) => self.channel.borrow().clone(),
            None => Err(QueueError::Disconnected),
        }
    }

    /// See [`safelight_queue::JobQueue::publish`].
    pub(super) async fn publish(&self, notices: &[JobNotice]) -> Result<(), QueueError> {
        self.check()?;
        if notices.is_empty() {
            return Ok(());
        }
        let (answer, answered) = oneshot::channel();
        let call = Call { notices: notices.to_vec(), answer };
        let round_trip = async {
            self.calls.send(call).await.map_err(|_| QueueError::Disconnected)?;
            answered.await.map_err(|_| QueueError::Disconnected)?
        };
        timeout(PUBLISH_TIMEOUT, round_trip).await.map_err(|_| QueueError::TimedOut)?
    }
}

/// The publishing side.
struct Task {
    link: Link,
    calls: mpsc::Receiver<Call>,
    channel: watch::Sender<Result<(), QueueError>>,
    closed: CancellationToken,
}

impl Task {
    async fn run(mut self) {
        let closed = self.closed.clone();
        let mut reconnect = Reconnect::default();
        loop {
            let connection = tokio::select! {
                () = closed.cancelled() => return,
                connection = self.link.connection() => connection,
            };
            let Some(connection) = connection else { return };
            let error = match open(&connection).await {
                Ok(channel) => {
                    self.note(Ok(()));
                    let end = self.serve(&connection, &channel, &mut reconnect).await;
                    self.note(Err(QueueError::Disconnected));
                    let Err(error) = end else { return };
                    error
                }
                Err(error) => error,
            };
            // If the connection is lost as well, its own task logs that.
            if connection.status().connected() {
                warn!(%error, "the publishing channel failed; opening a new one");
                self.note(Err(error));
            }
            while let Ok(call) = self.calls.try_recv() {
                let _ = call.answer.send(Err(QueueError::Disconnected));
            }
            tokio::select! {
                () = closed.cancelled() => return,
                () = tokio::time::sleep(reconnect.next_delay()) => {}
            }
        }
    }

    /// Notes whether the channel is open.
    fn note(&self, channel: Result<(), QueueError>) {
        self.channel.send_modify(|noted| *noted = channel);
    }

    /// Publishes batch after batch. Returns `Ok` when the publisher is closed or dropped. An error ends the channel,
    /// because outstanding confirms could be mistaken for those of later messages.
    async fn serve(
        &mut self,
        connection: &Arc<Connection>,
        channel: &Channel,
        reconnect: &mut Reconnect,
    ) -> Result<(), QueueError> {
        loop {
            let first = tokio::select! {
                () = self.closed.cancelled() => return Ok(()),
                () = self.link.lost(connection) => return Err(QueueError::Disconnected),
                call = self.calls.recv() => call,
            };
            let Some(first) = first else { return Ok(()) };
            let (answers, notices) = self.merge(first);
            let result = timeout(PUBLISH_TIMEOUT, publish_batch(channel, &notices))
                .await
                .unwrap_or(Err(QueueError::TimedOut));
            for answer in answers {
                // Fails if the caller has timed out.
                let _ = answer.send(result.clone());
            }
            match result {
                Ok(()) => reconnect.reset(),
                // The queue may have been deleted. All confirms have arrived, so the channel stays usable.
                Err(QueueError::Refused(reason)) => {
                    debug!(reason, "the broker rejected messages; declaring the queues again");
                    topology::declare(channel).await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Merges `first` with other waiting calls. Skips calls that have timed out.
    fn merge(
        &mut self,
        first: Call,
    ) -> (Vec<oneshot::Sender<Result<(), QueueError>>>, Vec<JobNotice>) {
        let (mut answers, mut notices) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        while let Some(call) = next {
            if !call.answer.is_closed() {
                answers.push(call.answer);
                notices.extend(call.notices);
            }
            next = if notices.len() < BATCH { self.calls.try_recv().ok() } else { None };
        }
        (answers, notices)
    }
}

/// A channel in confirm mode, with everything declared.
async fn open(connection: &Connection) -> Result<Channel, QueueError> {
    // The broker does not read from a blocked connection, so attempts would accumulate.
    while connection.status().blocked() && connection.status().connected() {
        tokio::time::sleep(BLOCKED_POLL).await;
    }
    let channel = within(OPEN_TIMEOUT, connection.create_channel()).await?;
    topology::declare(&channel).await?;
    within(OPEN_TIMEOUT, channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// Publishes all and waits for every confirm. Reports a rejected message after all confirms.
async fn publish_batch(channel: &Channel, notices: &[JobNotice]) -> Result<(), QueueError> {
    // `buffered` polls them first in this order, so they are sent in this order.
    let sends: Vec<_> = notices.iter().map(|notice| publish_one(channel, notice)).collect();
    let confirms: Vec<PublisherConfirm> =
        stream::iter(sends).buffered(UNWRITTEN).try_collect().await?;
    let mut refused = None;
    for confirm in confirms {
        match confirm.await.map_err(failed)? {
            Confirmation::Ack(None) => {}
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                refused = Some(describe(&returned));
            }
            Confirmation::Nack(None) => refused = Some("negative confirm".to_owned()),
            Confirmation::NotRequested => refused = Some("no confirm mode".to_owned()),
        }
    }
    refused.map_or(Ok(()), |reason| Err(QueueError::Refused(reason)))
}

async fn publish_one(
    channel: &Channel,
    notice: &JobNotice,
) -> Result<PublisherConfirm, QueueError> {
    let queue = Queue::of(notice);
    let (body, properties) = message::encode(notice)
        .map_err(|error| QueueError::Refused(format!("{}: {error}", notice.job)))?;
    let (exchange, key) = (topology::EXCHANGE.into(), queue.to_string().into());
    let published = channel.basic_publish(exchange, key, message::options(), &body, properties);
    published.await.map_err(failed)
}

fn describe(returned: &BasicReturnMessage) -> String {
    format!("{} {} for {}", returned.reply_code, returned.reply_text, returned.routing_key)
}
