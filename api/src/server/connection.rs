//! One connection, bounded in time and memory.

use std::{convert::Infallible, future::pending, io, time::Duration};

use axum::response::Response;
use hyper::{Request, Version, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use super::{
    idle_timeout::{IdleTimeout, Working},
    tls::{Tls, is_http2},
};

/// Read buffer of an HTTP/1 connection. Bounds the memory of many slow uploads.
const HTTP1_BUFFER_BYTES: usize = 64 * 1024;

/// What an HTTP/2 client may send ahead on one stream.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// What an HTTP/2 client may send ahead on one connection.
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Concurrent requests of one HTTP/2 connection. Bounds what a client that takes nothing can pin.
const HTTP2_STREAMS: u32 = 100;

/// How long an HTTP/2 client may take to close its connection after it was asked to.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(1);

/// The first bytes of an HTTP/2 connection (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Pauses between two looks for the rest of a preface: the first, and the longest.
const PREFACE_PAUSE: Duration = Duration::from_millis(5);
const PREFACE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// Serves one connection to its end. `idle` is how long the client may take for a request's head, stay idle,
/// or read nothing of a response.
pub async fn serve_connection<F>(
    stream: TcpStream,
    tls: Option<Tls>,
    answer: impl Fn(Request<Incoming>) -> F,
    idle: Duration,
    shutdown: CancellationToken,
) where
    F: Future<Output = Result<Response, Infallible>> + Send + 'static,
{
    // Small responses must not wait for acknowledgements. An error means that the client is gone.
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else {
        let detected = timeout(idle, speaks_http2(&stream));
        if let Some(Ok(Ok(http2))) = shutdown.run_until_cancelled(detected).await {
            http(stream, http2, answer, idle, shutdown).await;
        }
        return;
    };
    let handshake = timeout(idle, tls.accept(stream));
    if let Some(Ok(Ok(stream))) = shutdown.run_until_cancelled(handshake).await {
        let http2 = is_http2(&stream);
        http(stream, http2, answer, idle, shutdown).await;
    }
}

/// Speaks HTTP on one connection to its end.
async fn http<F>(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    http2: bool,
    answer: impl Fn(Request<Incoming>) -> F,
    idle: Duration,
    shutdown: CancellationToken,
) where
    F: Future<Output = Result<Response, Infallible>> + Send + 'static,
{
    let builder = Builder::new(TokioExecutor::new());
    let mut builder = if http2 { builder.http2_only() } else { builder.http1_only() };
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
        .max_concurrent_streams(HTTP2_STREAMS)
        .keep_alive_interval(idle);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(idle));
    let io = TokioIo::new(Box::pin(stream));
    let idle_timeout = IdleTimeout::new();
    let service = service_fn(|request: Request<Incoming>| {
        let working = (request.version() == Version::HTTP_2).then(|| Working::new(&idle_timeout));
        track_reading(answer(request), working)
    });
    let connection = builder.serve_connection(io, service);
    tokio::pin!(connection);
    // hyper has timeouts for each state of HTTP/1, but for HTTP/2 it only checks that the client answers
    // pings.
    let left = async { if http2 { idle_timeout.elapsed(idle).await } else { pending().await } };
    let served = async {
        let mut connection = connection.as_mut();
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = shutdown.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        connection.await
    };
    let ended = tokio::select! {
        biased;
        ended = served => ended,
        () = left => {
            connection.as_mut().graceful_shutdown();
            timeout(GOAWAY_TIMEOUT, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "connection ended");
    }
}

/// A response whose body records whether the client reads it, if `working` is given.
async fn track_reading(
    answer: impl Future<Output = Result<Response, Infallible>>,
    working: Option<Working>,
) -> Result<Response, Infallible> {
    let response = answer.await?;
    Ok(match working {
        Some(working) => response.map(|body| working.hand_over(body)),
        None => response,
    })
}

/// Whether the client sends the preface of HTTP/2. hyper-util waits for the first bytes without a limit, so a
/// silent client would hold its connection forever.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut head = [0; HTTP2_PREFACE.len()];
    let mut pause = PREFACE_PAUSE;
    loop {
        stream.readable().await?;
        let count = stream.peek(&mut head).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let begins = HTTP2_PREFACE.starts_with(&head[..count]);
        if count == head.len() || !begins {
            return Ok(begins);
        }
        // The preface arrives in pieces, and peeking does not wait for more. The pause grows, so that many
        // clients that send no more do not keep a processor busy.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PREFACE_PAUSE_MAX);
    }
}
