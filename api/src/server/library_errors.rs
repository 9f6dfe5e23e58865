//! What hyper answers by itself to bytes that are no request: a status without a body. Clients get a problem
//! document instead, as for every other error.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::http::problem;

/// Whether a connection has had a request. From then on hyper may be writing the bytes of a response, among
/// which nothing must be replaced.
#[derive(Clone, Default)]
pub struct HadRequest(Arc<AtomicBool>);

impl HadRequest {
    /// Notes a request.
    pub fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A stream on which the library's error to the first request is replaced.
pub struct LibraryErrors<S> {
    stream: S,
    had_request: HadRequest,
    /// The replacement that is being written, and the bytes that it stands for.
    replacement: Option<(Bytes, usize)>,
}

impl<S> LibraryErrors<S> {
    /// Over a new connection.
    pub fn new(stream: S, had_request: HadRequest) -> Self {
        Self { stream, had_request, replacement: None }
    }
}

/// The status in a head that hyper writes.
fn status(head: &[u8]) -> Option<u16> {
    let digits = head.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LibraryErrors<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.replacement.is_none() && !this.had_request.0.load(Ordering::Relaxed) {
            let replacement = status(bytes).and_then(problem::of_library);
            this.replacement = replacement.map(|text| (text.into(), bytes.len()));
        }
        let Some((left, stands_for)) = &mut this.replacement else {
            return Pin::new(&mut this.stream).poll_write(context, bytes);
        };
        while !left.is_empty() {
            let written = ready!(Pin::new(&mut this.stream).poll_write(context, left))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let _ = left.split_to(written);
        }
        let stands_for = *stands_for;
        this.replacement = None;
        // What follows is not replaced a second time.
        this.had_request.note();
        Poll::Ready(Ok(stands_for))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.had_request.0.load(Ordering::Relaxed) && this.replacement.is_none() {
            return Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        }
        let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
        Pin::new(this).poll_write(context, first)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LibraryErrors<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const BARE: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";

    async fn written(had_request: bool, bytes: &[u8]) -> Vec<u8> {
        let (client, server) = tokio::io::duplex(64 * 1024);
        let noted = HadRequest::default();
        if had_request {
            noted.note();
        }
        let mut stream = LibraryErrors::new(server, noted);
        stream.write_all(bytes).await.expect("written");
        drop(stream);
        let (mut client, mut read) = (client, Vec::new());
        client.read_to_end(&mut read).await.expect("read");
        read
    }

    #[tokio::test]
    async fn only_an_error_before_the_first_request_is_replaced() {
        let replaced = String::from_utf8(written(false, BARE).await).expect("text");
        assert!(replaced.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{replaced}");
        for line in ["content-type: application/problem+json", "cache-control: no-store"] {
            assert!(replaced.contains(line), "{replaced}");
        }
        let (head, body) = replaced.split_once("\r\n\r\n").expect("a body");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{replaced}");
        assert!(body.contains("\"code\":\"invalid_request\""), "{replaced}");
        assert_eq!(written(true, BARE).await, BARE, "it may be the content of an image");
        let other = b"HTTP/1.1 200 OK\r\n\r\n";
        assert_eq!(written(false, other).await, other);
    }
}
