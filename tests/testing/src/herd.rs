//! Many clients that ask in the same moment: all connections first, then all requests, then all
//! answers. An HTTP client with a pool would spread them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Connections that are being opened at once: fewer than a server's queue of new ones holds.
const OPENING: usize = 100;

/// How long everything together may take.
const LIMIT: Duration = Duration::from_mins(1);

/// One client's answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head, as it came.
    pub head: String,
    /// The content.
    pub body: Bytes,
    /// From the request to the last byte.
    pub took: Duration,
}

/// Sends `GET` of `path` once for each of `servers` (URLs), all at once.
pub async fn get(servers: &[&str], path: &str) -> Result<Vec<Answer>> {
    tokio::time::timeout(LIMIT, get_all(servers, path)).await.context("the herd's answers")?
}

async fn get_all(servers: &[&str], path: &str) -> Result<Vec<Answer>> {
    let mut streams = Vec::with_capacity(servers.len());
    for some in servers.chunks(OPENING) {
        let open = some.iter().map(|url| TcpStream::connect(url.trim_start_matches("http://")));
        streams.extend(try_join_all(open).await?);
    }
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: herd\r\nAccept: */*\r\nConnection: close\r\n\r\n");
    let began = Instant::now();
    for stream in &mut streams {
        stream.write_all(request.as_bytes()).await?;
    }
    try_join_all(streams.into_iter().map(|stream| answer(stream, began))).await
}

/// Reads an answer of known length.
async fn answer(mut stream: TcpStream, began: Instant) -> Result<Answer> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    let took = began.elapsed();
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").context("no head")?;
    let head = String::from_utf8(bytes[..end].to_vec())?;
    let body = Bytes::from(bytes).slice(end + 4..);
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok()).flatten()
    });
    ensure!(length == Some(body.len()), "an answer broke off after {} bytes:\n{head}", body.len());
    Ok(Answer { status, head, body, took })
}
