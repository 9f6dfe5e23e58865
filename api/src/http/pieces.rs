//! A body in pieces of bounded size: a connection takes the next one only once it has sent most of the last, so what
//! wraps the body learns how far its client has read.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};

/// Bytes of a piece: what fits into one frame of every HTTP/2 client.
pub const PIECE_BYTES: usize = 16 << 10;

/// The same bytes in pieces of at most [`PIECE_BYTES`].
pub struct Pieces {
    body: Body,
    /// What has arrived and is not passed on yet.
    rest: Bytes,
}

impl Pieces {
    /// Of `body`.
    pub fn new(body: Body) -> Self {
        Self { body, rest: Bytes::new() }
    }

    /// Whether the next piece must come from the body.
    pub fn needs_more(&self) -> bool {
        self.rest.is_empty()
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) if frame.is_data() => {
                    this.rest = frame.into_data().unwrap_or_default();
                }
                other => return Poll::Ready(other),
            }
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (held, mut hint) = (self.rest.len() as u64, self.body.size_hint());
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + held);
        }
        hint.set_lower(hint.lower() + held);
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn body_is_sent_complete_in_bounded_pieces() {
        let whole: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let mut body = Pieces::new(Body::from(whole.clone()));
        assert_eq!(body.size_hint().exact(), Some(100_000));
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            let piece = frame.expect("a frame").into_data().expect("data");
            assert!(piece.len() <= PIECE_BYTES);
            read.extend_from_slice(&piece);
            assert_eq!(body.size_hint().exact(), Some(100_000 - read.len() as u64));
            assert_eq!(body.needs_more(), read.len() == 100_000);
        }
        assert!(body.is_end_stream());
        assert_eq!(read, whole);
    }
}
