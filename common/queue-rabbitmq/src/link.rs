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

impl Link {
    /// Connects, and reconnects whenever the connection ends, until `closed`.
    pub(super) fn start(
        uri: AMQPUri,
        purpose: &'static str,
        tasks: &TaskTracker,
        closed: CancellationToken,
    ) -> Self {
        let (sender, receiver) = watch::channel(None);
        tasks.spawn(async move { keep_connected(&uri, purpose, &sender, &closed).await });
        Self(receiver)
    }

    /// A link that is closed from the start.
    pub(super) fn never() -> Self {
        Self(watch::channel(None).1)
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
    uri: &AMQPUri,
    purpose: &'static str,
    current: &watch::Sender<Current>,
    closed: &CancellationToken,
) {
    let mut reconnect = Reconnect::default();
    let mut is_logged = false;
    loop {
        let connected = tokio::select! {
            () = closed.cancelled() => return,
            connected = connect(uri, purpose) => connected,
        };
        let error = match connected {
            Ok(connection) => {
                reconnect.reset();
                is_logged = false;
                info!(purpose, "connected to the broker");
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
