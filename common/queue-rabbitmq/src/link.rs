//! A connection that reconnects by itself. There is one for publishing and one for consuming, because the broker
//! stops reading from a publisher's connection when memory or disk run low, and that must not delay
//! acknowledgements.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use lapin::{Connection, ConnectionProperties, Event, uri::AMQPUri};
use safelight_domain::retry::Reconnect;
use safelight_queue::QueueError;
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

/// For all steps of connecting: DNS, TCP, TLS, handshake, authentication.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For closing properly; afterwards the connection is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the connection's state is checked, in case its end is not reported.
const WATCHDOG: Duration = Duration::from_secs(1);

type Current = Option<Arc<Connection>>;

/// The current connection for one purpose, if there is one.
#[derive(Clone)]
pub(super) struct Link(watch::Receiver<Current>);

/// Where a link connects.
struct Target {
    /// The nodes; it uses one at a time.
    nodes: Vec<AMQPUri>,
    purpose: &'static str,
}

impl Link {
    /// Connects to one of `nodes`, and reconnects whenever the connection ends, until `closed`. Never connects if
    /// there are none.
    pub(super) fn start(
        nodes: Vec<AMQPUri>,
        purpose: &'static str,
        tasks: &TaskTracker,
        closed: CancellationToken,
    ) -> Self {
        let (sender, receiver) = watch::channel(None);
        let target = Target { nodes, purpose };
        tasks.spawn(async move { keep_connected(&target, &sender, &closed).await });
        Self(receiver)
    }

    /// The connection, if it is up.
    pub(super) fn now(&self) -> Current {
        self.0.borrow().clone().filter(|connection| connection.status().connected())
    }

    /// The connection as soon as it is up; `None` once the link is closed.
    pub(super) async fn connection(&self) -> Current {
        self.0.clone().wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Returns when `connection` is no longer the current one.
    pub(super) async fn lost(&self, connection: &Arc<Connection>) {
        let is_other =
            |now: &Current| !now.as_ref().is_some_and(|now| Arc::ptr_eq(now, connection));
        // An error means that the link is closed, and so is the connection.
        let _ = self.0.clone().wait_for(is_other).await;
    }
}

/// Limits the time of a call to the broker.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, QueueError> {
    timeout(limit, call).await.map_err(|_| QueueError::TimedOut)?.map_err(failed)
}

/// Converts an error of the client library.
pub(super) fn failed(error: lapin::Error) -> QueueError {
    QueueError::Client(Arc::new(error))
}

async fn keep_connected(
    target: &Target,
    current: &watch::Sender<Current>,
    closed: &CancellationToken,
) {
    let Target { nodes, purpose } = target;
    let mut reconnect = Reconnect::default();
    let mut is_logged = false;
    // Processes start with different nodes, so that each node has a share of them.
    let first = fastrand::usize(..nodes.len().max(1));
    for node in nodes.iter().cycle().skip(first) {
        let connected = tokio::select! {
            () = closed.cancelled() => return,
            connected = connect(node, purpose) => connected,
        };
        let error = match connected {
            Ok(connection) => {
                reconnect.reset();
                is_logged = false;
                let authority = &node.authority;
                info!(
                    purpose,
                    host = authority.host,
                    port = authority.port,
                    "connected to the broker"
                );
                let connection = Arc::new(connection);
                current.send_replace(Some(Arc::clone(&connection)));
                let end = tokio::select! {
                    () = closed.cancelled() => None,
                    reason = end_of(&connection) => Some(reason),
                };
                current.send_replace(None);
                let Some(reason) = end else {
                    let _ = within(CLOSE_TIMEOUT, connection.close(200, "closing".into())).await;
                    return;
                };
                reason
            }
            Err(error) => error.to_string(),
        };
        if !is_logged {
            warn!(purpose, error, "no connection to the broker; retrying");
            is_logged = true;
        }
        tokio::select! {
            () = closed.cancelled() => return,
            () = tokio::time::sleep(reconnect.next_delay()) => {}
        }
    }
}

async fn connect(uri: &AMQPUri, purpose: &str) -> Result<Connection, QueueError> {
    let properties =
        ConnectionProperties::default().with_connection_name(format!("safelight {purpose}").into());
    within(CONNECT_TIMEOUT, Connection::connect_uri(uri.clone(), properties)).await
}

/// Waits until the connection ends, and returns the reason.
async fn end_of(connection: &Connection) -> String {
    let mut events = std::pin::pin!(connection.events_listener());
    let mut watchdog = tokio::time::interval(WATCHDOG);
    let mut reason = "the connection ended".to_owned();
    loop {
        tokio::select! {
            Some(event) = events.next() => match event {
                // Also reported for errors of a single channel; the state below decides.
                Event::Error(error) => reason = error.to_string(),
                Event::ConnectionBlocked(reason) => warn!(reason, "the broker blocks publishers"),
                Event::ConnectionUnblocked => info!("the broker accepts messages again"),
                _ => {}
            },
            _ = watchdog.tick() => {}
        }
        if !connection.status().connected() {
            return reason;
        }
    }
}
