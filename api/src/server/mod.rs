//! Listening: HTTP/1.1 and HTTP/2, with or without TLS, on one port, until the server is drained.

mod activity;
mod connection;
mod connection_permits;
mod idle_timeout;
mod library_errors;
mod lingering;
mod stream_permits;
mod tls;
mod unread_body;

use std::{future::pending, io, net::IpAddr, time::Duration};

use safelight_config::Config;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::OwnedSemaphorePermit,
    time::timeout,
};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tower::Service;

pub use tls::{Tls, TlsError};

use crate::{
    auth::Client,
    http::draining::Draining,
    router::{self, Api},
};
use activity::{OpenConnection, OpenConnections};
use connection::{Bounds, serve_connection};
use connection_permits::ConnectionPermits;
use lingering::Pace;
use stream_permits::StreamPermits;

/// How long a start may take before clients are answered.
const QUIET_START: Duration = Duration::from_secs(1);

/// Pause after an `accept` that failed for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is cancelled; then accepts no more connections, sends delayed responses, gives
/// requests in flight at most `drain_timeout_ms` to finish, and returns.
pub async fn serve(
    listener: TcpListener,
    api: Api,
    tls: Option<Tls>,
    config: &Config,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let api = api.draining(Draining(shutdown.clone()));
    let _sampling = AbortOnDropHandle::new(tokio::spawn(api.clone().sample_queues()));
    let connections = TaskTracker::new();
    // Ends the connections that remain after the drain.
    let abort = CancellationToken::new();
    let permits = ConnectionPermits::new(config.max_connections);
    let bounds = SharedBounds::new(config);
    let idle = Duration::from_millis(config.client_idle_timeout_ms);
    while let Some((stream, client, permit)) =
        accept(&listener, (&permits, &bounds.open), &shutdown).await
    {
        let (api, tls) = (api.clone(), tls.clone());
        let (open, bounds) = bounds.of(client);
        let client = Client::connected(&stream);
        let (shutdown, abort) = (shutdown.clone(), abort.clone());
        connections.spawn(async move {
            let answer = |request| api.answer_to(&client, request);
            tokio::select! {
                biased;
                () = serve_connection(stream, tls, &bounds, answer, idle, shutdown) => {}
                () = open.activity.gave_way() => {}
                () = abort.cancelled() => {}
            }
            drop((open, permit));
        });
    }
    drop(listener);
    connections.close();
    if timeout(Duration::from_millis(config.drain_timeout_ms), connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests did not finish in time");
        abort.cancel();
        connections.wait().await;
    }
    Ok(())
}

/// Runs `work`, without which nothing can be served. If it takes longer than [`QUIET_START`], connections to
/// `listener` are accepted meanwhile: `/livez` answers that the process lives, every other path answers 503.
pub async fn while_starting<T>(
    listener: &TcpListener,
    tls: Option<&Tls>,
    config: &Config,
    work: impl Future<Output = T>,
) -> T {
    let started = CancellationToken::new();
    let _ended = started.clone().drop_guard();
    let idle = Duration::from_millis(config.client_idle_timeout_ms);
    let answering = async {
        // Most starts take less time than a client that has to retry after a 503.
        tokio::time::sleep(QUIET_START).await;
        let (router, permits) = (
            router::starting(router::connects_by_tls(config)),
            ConnectionPermits::new(config.max_connections),
        );
        let bounds = SharedBounds::new(config);
        while let Some((stream, client, permit)) =
            accept(listener, (&permits, &bounds.open), &started).await
        {
            let (router, tls, started) = (router.clone(), tls.cloned(), started.clone());
            let (open, bounds) = bounds.of(client);
            tokio::spawn(async move {
                let answer = |request| router.clone().call(request);
                tokio::select! {
                    () = serve_connection(stream, tls, &bounds, answer, idle, started) => {}
                    () = open.activity.gave_way() => {}
                }
                drop((open, permit));
            });
        }
        pending().await
    };
    tokio::select! {
        done = work => done,
        never = answering => never,
    }
}

/// What all connections share.
struct SharedBounds {
    streams: StreamPermits,
    open: OpenConnections,
    discarding: Pace,
}

impl SharedBounds {
    /// There are permits for as many concurrent requests as there may be waiting clients, and some more.
    fn new(config: &Config) -> Self {
        let streams = StreamPermits::new(config.max_waiting + config.max_connections.div_ceil(2));
        let open = OpenConnections::new(config.max_connections);
        Self { streams, open, discarding: Pace::new() }
    }

    /// A new connection of `client`, and its part of what is shared.
    fn of(&self, client: IpAddr) -> (OpenConnection, Bounds) {
        let open = self.open.add();
        let (streams, activity) = (self.streams.connection(client), open.activity.clone());
        (open, Bounds { streams, activity, discarding: self.discarding.clone() })
    }
}

/// The next connection that there is a permit for; `None` at shutdown.
async fn accept(
    listener: &TcpListener,
    (permits, open): (&ConnectionPermits, &OpenConnections),
    shutdown: &CancellationToken,
) -> Option<(TcpStream, IpAddr, OwnedSemaphorePermit)> {
    let next = async {
        loop {
            match listener.accept().await {
                Ok((stream, client)) => {
                    if let Some(permit) = permits.acquire(open).await {
                        return Some((stream, client.ip(), permit));
                    }
                }
                // The client is gone already, or descriptors are used up: the server continues.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        next = next => next,
    }
}
