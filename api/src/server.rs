//! Connections: HTTP/1.1 and HTTP/2 without TLS on one port, bounded in number, time and memory.

use std::{io, sync::Arc, time::Duration};

use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use safelight_common::config::Config;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::{front::Api, state::Draining};

/// Connections at once. Past it new ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32_768;

/// Read buffer of an HTTP/1 connection. Bounds the memory of many slow uploads.
const HTTP1_BUFFER_BYTES: usize = 64 * 1024;

/// What an HTTP/2 client may send ahead on one stream.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// What an HTTP/2 client may send ahead on one connection.
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// The first bytes of an HTTP/2 connection (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Pause after an `accept` that failed for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is cancelled; then takes no more connections, ends answers that are
/// held back, lets requests in flight finish for at most `drain_timeout_ms`, and returns.
pub async fn serve(
    listener: TcpListener,
    api: Api,
    config: &Config,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let api = api.draining(Draining(shutdown.clone()));
    let _watching = AbortOnDropHandle::new(tokio::spawn(api.clone().watch_queues()));
    let connections = TaskTracker::new();
    // Ends those that are left when the drain is over.
    let abort = CancellationToken::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let idle = Duration::from_millis(config.client_idle_timeout_ms);
    while let Some((stream, place)) = accept(&listener, &places, &shutdown).await {
        let (api, shutdown, abort) = (api.clone(), shutdown.clone(), abort.clone());
        connections.spawn(async move {
            tokio::select! {
                () = connection(stream, api, idle, shutdown) => {}
                () = abort.cancelled() => {}
            }
            drop(place);
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

/// The next connection; `None` at shutdown.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    shutdown: &CancellationToken,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let next = async {
        let place = places.clone().acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((stream, place)),
                // The client is gone already, or we are out of descriptors: neither ends us.
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

/// Serves one connection to its end. `idle` is how long the client may take for a request's head, lie
/// idle, or take nothing of an answer.
async fn connection(stream: TcpStream, api: Api, idle: Duration, shutdown: CancellationToken) {
    // Small answers must not wait for acknowledgements. An error means that the peer is gone.
    let _ = stream.set_nodelay(true);
    let spoke = async { timeout(idle, protocol_shown(&stream)).await };
    tokio::select! {
        spoke = spoke => if !matches!(spoke, Ok(Ok(()))) { return },
        () = shutdown.cancelled() => return,
    }
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HTTP1_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(idle);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(idle));
    let io = TokioIo::new(Box::pin(stream));
    let service = service_fn(|request: Request<Incoming>| api.answer(request));
    let connection = builder.serve_connection(io, service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "connection ended");
    }
}

/// Returns when the first bytes tell HTTP/1 from HTTP/2. hyper-util waits for them without a
/// limit, so a silent client would hold its connection for ever.
async fn protocol_shown(stream: &TcpStream) -> io::Result<()> {
    let mut head = [0; HTTP2_PREFACE.len()];
    loop {
        stream.readable().await?;
        let count = stream.peek(&mut head).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if count == head.len() || !HTTP2_PREFACE.starts_with(&head[..count]) {
            return Ok(());
        }
        // The rest of a preface that came in pieces; peeking does not wait for more.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
