//! Many requests at the same moment: opens all connections, then sends all requests, then reads all
//! responses. An HTTP client with a connection pool would spread them over time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Connections that are opened concurrently: fewer than the accept queue of a server holds.
const CONCURRENT_CONNECTS: usize = 100;

/// How long all requests together may take.
const LIMIT: Duration = Duration::from_mins(1);

/// A response.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The status line and the headers, as received.
    pub head: String,
    /// The body.
    pub body: Bytes,
    /// The time from the request to the last byte.
    pub took: Duration,
}

/// Sends one `GET` of `path` to each of `servers` (URLs) concurrently.
pub async fn get(servers: &[&str], path: &str) -> Result<Vec<Response>> {
    tokio::time::timeout(LIMIT, get_all(servers, path)).await.context("concurrent requests")?
}

async fn get_all(servers: &[&str], path: &str) -> Result<Vec<Response>> {
    let mut streams = Vec::with_capacity(servers.len());
    for some in servers.chunks(CONCURRENT_CONNECTS) {
        let open = some.iter().map(|url| TcpStream::connect(url.trim_start_matches("http://")));
        streams.extend(try_join_all(open).await?);
    }
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: safelight\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    let started = Instant::now();
    for stream in &mut streams {
        stream.write_all(request.as_bytes()).await?;
    }
    try_join_all(streams.into_iter().map(|stream| read_response(stream, started))).await
}

/// Reads a response with `Content-Length`.
async fn read_response(mut stream: TcpStream, started: Instant) -> Result<Response> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let took = started.elapsed();
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").context("no head")?;
    let head = String::from_utf8(bytes[..end].to_vec())?;
    let body = Bytes::from(bytes).slice(end + 4..);
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok()).flatten()
    });
    ensure!(
        length == Some(body.len()),
        "a response was truncated after {} bytes:\n{head}",
        body.len()
    );
    Ok(Response { status, head, body, took })
}
