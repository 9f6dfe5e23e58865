//! A connection that is always being kept up. One for publishing and one for consuming, because
//! the broker stops reading from a publisher's connection when it is short of memory or disk, and
//! acknowledgements must not wait behind that.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use lapin::{Connection, ConnectionProperties, Event, uri::AMQPUri};
use safelight_domain::retry::Reconnect;
use safelight_queue::QueueError;
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

/// For the whole connect: name, TCP, TLS, handshake, authentication.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For the polite goodbye; the connection is dropped without it afterwards.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the connection's state is looked at, should its end not be announced.
const WATCHDOG: Duration = Duration::from_secs(1);

type Current = Option<Arc<Connection>>;

/// The present connection of one purpose, if there is one.
#[derive(Clone)]
pub(super) struct Link(watch::Receiver<Current>);

impl Link {
    /// Begins to connect, and does so again whenever the connection ends, until `closed`.
    pub(super) fn start(
        uri: AMQPUri,
        purpose: &'static str,
        tasks: &TaskTracker,
        closed: CancellationToken,
    ) -> Self {
        let (sender, receiver) = watch::channel(None);
        tasks.spawn(async move { keep_up(&uri, purpose, &sender, &closed).await });
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

    /// Returns when `connection` is no longer the present one.
    pub(super) async fn lost(&self, connection: &Arc<Connection>) {
        let is_other =
            |now: &Current| !now.as_ref().is_some_and(|now| Arc::ptr_eq(now, connection));
        // An error means that the link is closed, and so is the connection.
        let _ = self.0.clone().wait_for(is_other).await;
    }
}

/// Bounds a wait on the broker.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, QueueError> {
    timeout(limit, call).await.map_err(|_| QueueError::TimedOut)?.map_err(failed)
}

/// An error of the client library.
pub(super) fn failed(error: lapin::Error) -> QueueError {
    QueueError::Client(Arc::new(error))
}

async fn keep_up(
    uri: &AMQPUri,
    purpose: &'static str,
    current: &watch::Sender<Current>,
    closed: &CancellationToken,
) {
    let mut reconnect = Reconnect::default();
    let mut told = false;
    loop {
        let connected = tokio::select! {
            () = closed.cancelled() => return,
            connected = connect(uri, purpose) => connected,
        };
        let trouble = match connected {
            Ok(connection) => {
                reconnect.reset();
                told = false;
                info!(purpose, "connected to the broker");
                let connection = Arc::new(connection);
                current.send_replace(Some(Arc::clone(&connection)));
                let end = tokio::select! {
                    () = closed.cancelled() => None,
                    trouble = end_of(&connection) => Some(trouble),
                };
                current.send_replace(None);
                let Some(trouble) = end else {
                    let _ = within(CLOSE_TIMEOUT, connection.close(200, "closing".into())).await;
                    return;
                };
                trouble
            }
            Err(error) => error.to_string(),
        };
        if !told {
            warn!(purpose, error = trouble, "no connection to the broker; trying until there is");
            told = true;
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

/// Waits until the connection is of no more use and says why.
async fn end_of(connection: &Connection) -> String {
    let mut events = std::pin::pin!(connection.events_listener());
    let mut look = tokio::time::interval(WATCHDOG);
    let mut reason = "the connection ended".to_owned();
    loop {
        tokio::select! {
            Some(event) = events.next() => match event {
                // Also sent for the errors of a single channel; the state tells.
                Event::Error(error) => reason = error.to_string(),
                Event::ConnectionBlocked(reason) => warn!(reason, "the broker blocks publishers"),
                Event::ConnectionUnblocked => info!("the broker takes messages again"),
                _ => {}
            },
            _ = look.tick() => {}
        }
        if !connection.status().connected() {
            return reason;
        }
    }
}
