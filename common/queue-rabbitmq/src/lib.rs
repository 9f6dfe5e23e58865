//! `RabbitMQ` over AMQP 0-9-1. Two connections: `link` keeps each up, `publisher` and `consumer` use
//! them, `topology` says what is declared, `message` what is sent.
//!
//! The client library's own recovery is off: it has been seen to stall after a broker's crash.

mod acks;
mod consumer;
mod link;
mod message;
mod publisher;
mod topology;

use std::{sync::OnceLock, time::Duration};

use async_trait::async_trait;
use lapin::{
    Connection, ErrorKind,
    options::QueueDeclareOptions,
    protocol::{AMQPErrorKind, AMQPSoftError},
    types::FieldTable,
    uri::AMQPUri,
};
use safelight_domain::JobNotice;
use safelight_queue::{JobQueue, Queue, QueueError, Subscription};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::error;

use self::{
    consumer::{Feeder, Source},
    link::{Link, within},
    publisher::Publisher,
};

/// A silent peer is given up after two of these.
const HEARTBEAT_S: u16 = 10;
const TCP_TIMEOUT_MS: u64 = 5_000;
const DEPTH_TIMEOUT: Duration = Duration::from_secs(5);
/// For a batch under way to have its confirms, or fail, before the connections are closed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(11);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A `RabbitMQ` broker or cluster behind one URL.
pub struct RabbitQueue {
    /// `None` if the URL cannot be read; nothing ever connects then.
    uri: Option<AMQPUri>,
    publisher: Publisher,
    /// Made with the first subscription: a process that only publishes has one connection.
    consuming: OnceLock<Link>,
    /// Publisher and subscriptions.
    users: TaskTracker,
    /// The keepers of the connections, closed after their users.
    links: TaskTracker,
    closed: CancellationToken,
    links_closed: CancellationToken,
}

impl RabbitQueue {
    /// Returns at once, and connects in the background for ever. Must be called within a tokio
    /// runtime. A URL without `heartbeat` or `connection_timeout` gets 10 s and 5 s; one without a
    /// virtual host, or with an empty one, means `/`.
    pub fn start(url: &str) -> Self {
        let (users, links) = (TaskTracker::new(), TaskTracker::new());
        let (closed, links_closed) = (CancellationToken::new(), CancellationToken::new());
        let uri = read(url);
        let link = connect(uri.as_ref(), "publishing", &links, &links_closed);
        let publisher = Publisher::start(link, &users, closed.clone());
        Self { uri, publisher, consuming: OnceLock::new(), users, links, closed, links_closed }
    }

    fn consuming(&self) -> &Link {
        self.consuming.get_or_init(|| {
            connect(self.uri.as_ref(), "consuming", &self.links, &self.links_closed)
        })
    }

    fn feed(&self, source: Source, prefetch: u16) -> Result<Subscription, QueueError> {
        self.ensure_open()?;
        // 0 would mean no limit.
        let prefetch = prefetch.max(1);
        let (sender, receiver) = mpsc::channel(usize::from(prefetch));
        let (link, closed) = (self.consuming().clone(), self.closed.clone());
        self.users.spawn(Feeder { link, source, prefetch, sender, closed }.run());
        Ok(Subscription::new(receiver))
    }

    fn ensure_open(&self) -> Result<(), QueueError> {
        if self.closed.is_cancelled() { Err(QueueError::Disconnected) } else { Ok(()) }
    }
}

#[async_trait]
impl JobQueue for RabbitQueue {
    async fn publish(&self, notices: &[JobNotice]) -> Result<(), QueueError> {
        self.ensure_open()?;
        self.publisher.publish(notices).await
    }

    async fn subscribe(&self, queue: Queue, prefetch: u16) -> Result<Subscription, QueueError> {
        self.feed(Source::Work(queue), prefetch)
    }

    async fn dead_letters(&self, prefetch: u16) -> Result<Subscription, QueueError> {
        self.feed(Source::Dead, prefetch)
    }

    async fn depth(&self, queue: Queue) -> Result<u64, QueueError> {
        self.ensure_open()?;
        let link = self.consuming();
        let connected = timeout(DEPTH_TIMEOUT, link.connection()).await;
        let connection = connected.ok().flatten().ok_or(QueueError::Disconnected)?;
        match depth(&connection, &queue.to_string()).await {
            // A queue that does not exist holds nothing.
            Err(error) if is_not_found(&error) => Ok(0),
            depth => depth,
        }
    }

    async fn check(&self) -> Result<(), QueueError> {
        self.ensure_open()?;
        self.publisher.check()
    }

    fn survives_restart(&self) -> bool {
        true
    }

    async fn close(&self) {
        self.closed.cancel();
        self.users.close();
        let _ = timeout(DRAIN_TIMEOUT, self.users.wait()).await;
        self.links_closed.cancel();
        self.links.close();
        let _ = timeout(CLOSE_TIMEOUT, self.links.wait()).await;
    }
}

impl Drop for RabbitQueue {
    fn drop(&mut self) {
        self.closed.cancel();
        self.links_closed.cancel();
    }
}

fn connect(
    uri: Option<&AMQPUri>,
    purpose: &'static str,
    links: &TaskTracker,
    closed: &CancellationToken,
) -> Link {
    match uri {
        Some(uri) => Link::start(uri.clone(), purpose, links, closed.clone()),
        None => Link::never(),
    }
}

/// The URL with what it leaves out.
fn read(url: &str) -> Option<AMQPUri> {
    // The reason does not repeat the URL, which may hold a password.
    let read = url.parse::<AMQPUri>();
    let mut uri =
        read.inspect_err(|reason| error!(reason, "the queue's URL cannot be read")).ok()?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
    uri.query.connection_timeout.get_or_insert(TCP_TIMEOUT_MS);
    if uri.vhost.is_empty() {
        "/".clone_into(&mut uri.vhost);
    }
    Some(uri)
}

/// How many messages wait in a queue.
async fn depth(connection: &Connection, queue: &str) -> Result<u64, QueueError> {
    // On a channel of its own, because asking for a queue that is not there closes the channel.
    let channel = within(DEPTH_TIMEOUT, connection.create_channel()).await?;
    let options = QueueDeclareOptions::default().passive();
    let declare = channel.queue_declare(queue.into(), options, FieldTable::default());
    Ok(u64::from(within(DEPTH_TIMEOUT, declare).await?.message_count()))
}

/// Whether the broker says that there is no such queue.
fn is_not_found(error: &QueueError) -> bool {
    let QueueError::Client(cause) = error else { return false };
    let Some(error) = cause.downcast_ref::<lapin::Error>() else { return false };
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_get_the_defaults_they_lack() {
        let uri = read("amqp://u:p@host/").expect("reads");
        assert_eq!(uri.vhost, "/");
        assert_eq!(uri.query.heartbeat, Some(HEARTBEAT_S));
        assert_eq!(uri.query.connection_timeout, Some(TCP_TIMEOUT_MS));
        let uri = read("amqp://host/v?heartbeat=3").expect("reads");
        assert_eq!((uri.vhost.as_str(), uri.query.heartbeat), ("v", Some(3)));
        assert!(read("amqp://host:port").is_none());
    }
}
