//! Responses that are read line by line, and resumed after an interruption.

use std::io::ErrorKind;

use reqwest::RequestBuilder;
use safelight_domain::retry::Reconnect;
use serde_json::Value;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use crate::{client::send, error::ClientError};

/// Writes the lines of a response to `target`. `request` makes the request for the lines after the one with
/// the given `id`. After an interruption the download resumes after the last complete line.
pub(crate) async fn download(
    tries: u32,
    request: impl Fn(Option<&str>) -> RequestBuilder,
    target: &mut (impl AsyncWrite + Unpin),
) -> Result<(), ClientError> {
    let mut last = None::<String>;
    let mut delays = Reconnect::default();
    let mut failures = 0;
    loop {
        let (moved, ended) = copy_lines(request(last.as_deref()), target, &mut last).await?;
        failures = if moved { 0 } else { failures + 1 };
        match ended {
            Ok(()) => return flush(target).await,
            Err(error) if error.is_retryable() && failures < tries => {
                tokio::time::sleep(error.retry_after().unwrap_or(delays.next_delay())).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Copies the complete lines of a response. Returns whether there were any, and how the transfer ended; a
/// failed write is the outer error. `last` is set to the `id` of the last line.
async fn copy_lines(
    request: RequestBuilder,
    target: &mut (impl AsyncWrite + Unpin),
    last: &mut Option<String>,
) -> Result<(bool, Result<(), ClientError>), ClientError> {
    let mut response = match send(request).await {
        Ok(response) => response,
        Err(error) => return Ok((false, Err(error))),
    };
    let (mut pending, mut moved) = (Vec::new(), false);
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => pending.extend_from_slice(&chunk),
            Ok(None) => return Ok((moved, Ok(()))),
            Err(error) => return Ok((moved, Err(ClientError::unreachable(&error)))),
        }
        let Some(end) = pending.iter().rposition(|&byte| byte == b'\n') else { continue };
        let whole: Vec<u8> = pending.drain(..=end).collect();
        match target.write_all(&whole).await {
            // The reader closed the pipe (`… | head`).
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok((true, Ok(()))),
            written => written.map_err(ClientError::new)?,
        }
        let line = whole[..end].rsplit(|&byte| byte == b'\n').next().unwrap_or_default();
        let line: Value = serde_json::from_slice(line).unwrap_or_default();
        *last = line["id"].as_str().map(str::to_owned);
        moved = true;
    }
}

async fn flush(target: &mut (impl AsyncWrite + Unpin)) -> Result<(), ClientError> {
    match target.flush().await {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(ClientError::new(error)),
        _ => Ok(()),
    }
}
