//! `RabbitMQ` over AMQP 0-9-1. There are two connections: `link` reconnects each, `publisher` and `consumer` use
//! them, `topology` declares exchanges and queues, and `message` defines the format.
//!
//! The client library's own recovery is disabled, because it can stall after a broker's crash.

mod acks;
mod consumer;
mod link;
mod message;
mod publisher;
mod topology;

use std::{sync::OnceLock, time::Duration};

use async_trait::async_trait;
use lapin::{
    Connection, options::QueueDeclareOptions, protocol::AMQPSoftError, types::FieldTable,
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

/// The broker counts as lost after two intervals without a heartbeat.
const HEARTBEAT_S: u16 = 10;
/// With other nodes to go to, a frozen one is left sooner.
const HEARTBEAT_OF_NODES_S: u16 = 5;
const TCP_TIMEOUT_MS: u64 = 5_000;
const DEPTH_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the depth of a queue is read that is to be drained: the broker does not notify.
const DEPTH_PERIOD: Duration = Duration::from_millis(10);
/// For a batch in flight to get its confirms, or fail, before the connections are closed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(11);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A `RabbitMQ` broker, or a cluster.
pub struct RabbitQueue {
    /// The nodes. Empty if a URL is invalid; then there is never a connection.
    nodes: Vec<AMQPUri>,
    publisher: Publisher,
    /// Opened by the first subscription, so a process that only publishes has one connection.
    consuming: OnceLock<Link>,
    /// The tasks of the publisher and of subscriptions.
    users: TaskTracker,
    /// The tasks of the connections, which end after those that use them.
    links: TaskTracker,
    closed: CancellationToken,
    links_closed: CancellationToken,
}

impl RabbitQueue {
    /// [`RabbitQueue::start_on`] one node.
    pub fn start(url: &str) -> Self {
        Self::start_on(&[url.to_owned()])
    }

    /// Returns immediately, and connects and reconnects in the background: to one of the nodes, and to the next
    /// one when that fails. Must be called within a tokio runtime. The URLs' defaults are 10 s for `heartbeat`
    /// (5 s if there are several nodes), 5 s for `connection_timeout`, and `/` for an empty or missing virtual
    /// host.
    pub fn start_on(urls: &[String]) -> Self {
        let (users, links) = (TaskTracker::new(), TaskTracker::new());
        let (closed, links_closed) = (CancellationToken::new(), CancellationToken::new());
        let heartbeat = if urls.len() > 1 { HEARTBEAT_OF_NODES_S } else { HEARTBEAT_S };
        let nodes = urls.iter().map(|url| parse_url(url, heartbeat)).collect::<Option<Vec<_>>>();
        let nodes = nodes.unwrap_or_default();
        let link = Link::start(nodes.clone(), "publishing", &links, links_closed.clone());
        let publisher = Publisher::start(link, &users, closed.clone());
        Self { nodes, publisher, consuming: OnceLock::new(), users, links, closed, links_closed }
    }

    fn consuming(&self) -> &Link {
        self.consuming.get_or_init(|| {
            Link::start(self.nodes.clone(), "consuming", &self.links, self.links_closed.clone())
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
            // A queue that does not exist is empty.
            Err(error) if is_not_found(&error) => Ok(0),
            depth => depth,
        }
    }

    async fn drained_to(&self, queue: Queue, messages: u64) {
        loop {
            tokio::time::sleep(DEPTH_PERIOD).await;
            if !self.depth(queue).await.is_ok_and(|depth| depth > messages) {
                break;
            }
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

/// Parses the URL and adds defaults.
fn parse_url(url: &str, heartbeat: u16) -> Option<AMQPUri> {
    // The reason does not contain the URL, which may include a password.
    let parsed = url.parse::<AMQPUri>();
    let mut uri = parsed.inspect_err(|reason| error!(reason, "queue_url is invalid")).ok()?;
    uri.query.heartbeat.get_or_insert(heartbeat);
    uri.query.connection_timeout.get_or_insert(TCP_TIMEOUT_MS);
    if uri.vhost.is_empty() {
        "/".clone_into(&mut uri.vhost);
    }
    Some(uri)
}

/// The number of waiting messages in a queue.
async fn depth(connection: &Connection, queue: &str) -> Result<u64, QueueError> {
    // On a separate channel, because a passive declare of a missing queue closes the channel.
    let channel = within(DEPTH_TIMEOUT, connection.create_channel()).await?;
    let options = QueueDeclareOptions::default().passive();
    let declare = channel.queue_declare(queue.into(), options, FieldTable::default());
    Ok(u64::from(within(DEPTH_TIMEOUT, declare).await?.message_count()))
}

/// Whether the queue does not exist.
fn is_not_found(error: &QueueError) -> bool {
    matches!(topology::soft_error(error), Some((AMQPSoftError::NOTFOUND, _)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_url_parameters_get_defaults() {
        let uri = parse_url("amqp://u:p@host/", HEARTBEAT_S).expect("a valid URL");
        assert_eq!(uri.vhost, "/");
        assert_eq!(uri.query.heartbeat, Some(HEARTBEAT_S));
        assert_eq!(uri.query.connection_timeout, Some(TCP_TIMEOUT_MS));
        let uri = parse_url("amqp://host/v?heartbeat=3", HEARTBEAT_S).expect("a valid URL");
        assert_eq!((uri.vhost.as_str(), uri.query.heartbeat), ("v", Some(3)));
        assert!(parse_url("amqp://host:port", HEARTBEAT_S).is_none());
    }
}
