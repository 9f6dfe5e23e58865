//! One connection, bounded in time and memory.

use std::{convert::Infallible, future::pending, io, sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    http::header,
    response::Response,
};
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
    activity::{ActiveStream, Activity, Serving},
    idle_timeout::{IdleTimeout, Working},
    library_errors::{HadRequest, LibraryErrors},
    lingering::{LingeringStream, Lingers, Pace},
    stream_permits::{ConnectionStreams, StreamPermit},
    tls::{Tls, is_http2},
    unread_body::RequestBody,
};
use crate::http::{holding::Holding, request_limits::OneTooMany};

/// Read buffer of an HTTP/1 connection: the largest head that [`request_limits`](crate::http::request_limits) accepts,
/// and its line breaks. Bounds the memory of many slow uploads, and of heads that never end.
const HTTP1_BUFFER_BYTES: usize = 25 * 1024;

/// What an HTTP/2 client may send ahead on one stream.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// What an HTTP/2 client may send ahead on one connection.
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Concurrent requests of one HTTP/2 connection. Bounds what a client that takes nothing can pin.
const HTTP2_STREAMS: u32 = 100;

/// Bytes of the header fields of an HTTP/2 request. Also bounds how many `CONTINUATION` frames a head may have.
const HTTP2_HEAD_BYTES: u32 = 16 * 1024;

/// Requests that an HTTP/2 client may reset before the server has looked at them, and resets that it may provoke by
/// errors. Beyond either its connection ends (CVE-2023-44487, CVE-2025-8671).
const HTTP2_PENDING_RESETS: usize = 20;
const HTTP2_PROVOKED_RESETS: usize = 256;

/// How long an HTTP/2 client may take to close its connection after it was asked to.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(1);

/// The first bytes of an HTTP/2 connection (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Pauses between two looks for the rest of a preface: the first, and the longest.
const PREFACE_PAUSE: Duration = Duration::from_millis(5);
const PREFACE_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What a connection shares with all others.
pub struct Bounds {
    /// The permits for its requests.
    pub streams: ConnectionStreams,
    /// What it does.
    pub activity: Arc<Activity>,
    /// The pace at which it discards what is sent after a response.
    pub discarding: Pace,
}

/// Serves one connection to its end. `idle` is how long the client may take for a request's head, stay idle,
/// or read nothing of a response. A request over HTTP/2 without a permit is marked as [`OneTooMany`].
pub async fn serve_connection<F>(
    stream: TcpStream,
    tls: Option<Tls>,
    bounds: &Bounds,
    answer: impl Fn(Request<RequestBody>) -> F,
    idle: Duration,
    shutdown: CancellationToken,
) where
    F: Future<Output = Result<Response, Infallible>> + Send + 'static,
{
    // Small responses must not wait for acknowledgements. An error means that the client is gone.
    let _ = stream.set_nodelay(true);
    let lingers = Lingers::default();
    let lingering =
        |stream| LingeringStream::new(stream, lingers.clone(), bounds.discarding.clone());
    let Some(tls) = tls else {
        let detected = timeout(idle, speaks_http2(&stream));
        if let Some(Ok(Ok(http2))) = shutdown.run_until_cancelled(detected).await {
            let stream = lingering(stream);
            http(stream, (http2, &lingers), bounds, answer, idle, shutdown).await;
        }
        return;
    };
    let handshake = timeout(idle, tls.accept(lingering(stream)));
    if let Some(Ok(Ok(stream))) = shutdown.run_until_cancelled(handshake).await {
        let http2 = is_http2(&stream);
        http(stream, (http2, &lingers), bounds, answer, idle, shutdown).await;
    }
}

/// Speaks HTTP on one connection to its end.
async fn http<F>(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    (http2, lingers): (bool, &Lingers),
    bounds: &Bounds,
    answer: impl Fn(Request<RequestBody>) -> F,
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
        .max_header_list_size(HTTP2_HEAD_BYTES)
        .max_pending_accept_reset_streams(HTTP2_PENDING_RESETS)
        .max_local_error_reset_streams(HTTP2_PROVOKED_RESETS)
        .keep_alive_interval(idle);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(idle));
    let had_request = HadRequest::default();
    let stream = ActiveStream::new(Box::pin(stream), bounds.activity.clone());
    let io = TokioIo::new(LibraryErrors::new(stream, had_request.clone()));
    let idle_timeout = IdleTimeout::new();
    let service = service_fn(|request: Request<Incoming>| {
        had_request.note();
        lingers.clear();
        let serving = bounds.activity.serve(!request.body().is_end_stream(), http2);
        let (mut request, unread) = RequestBody::of(request);
        let mut permit = None;
        let working = (request.version() == Version::HTTP_2).then(|| {
            permit = bounds.streams.begin();
            if permit.is_none() {
                request.extensions_mut().insert(OneTooMany);
            }
            Working::new(&idle_timeout)
        });
        let is_one_too_many = working.is_some() && permit.is_none();
        let answered = answer(request);
        let lingers = lingers.clone();
        let answered = async move {
            let mut response = answered.await?;
            if let Some(unread) = unread {
                unread.settle(http2, &lingers, &mut response);
            }
            Ok(if is_one_too_many { without_body(response) } else { response })
        };
        track_reading(answered, working, (permit, serving))
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

/// The head of a response alone. Of a request for which there is no permit nothing may be held, and a body can wait for
/// as long as its client likes.
fn without_body(response: Response) -> Response {
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.remove(header::CONTENT_TYPE);
    Response::from_parts(parts, Body::empty())
}

/// A response whose body keeps `held` until it was handed over, and records whether the client reads it, if `working` is
/// given.
async fn track_reading(
    answer: impl Future<Output = Result<Response, Infallible>>,
    working: Option<Working>,
    held: (Option<StreamPermit>, Serving),
) -> Result<Response, Infallible> {
    let response = answer.await?;
    Ok(match working {
        Some(working) => {
            response.map(|body| Body::new(Holding::new(working.hand_over(body), held)))
        }
        None if response.body().is_end_stream() => response,
        None => response.map(|body| Body::new(Holding::new(body, held.1))),
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
