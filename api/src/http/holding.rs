//! A body that keeps something until it was handed over: a permit, or a note that its request is being served.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};

/// A body, and what it keeps until it is dropped.
pub struct Holding<B, H> {
    body: B,
    _held: H,
}

impl<B, H> Holding<B, H> {
    /// `body`, which keeps `held`.
    pub fn new(body: B, held: H) -> Self {
        Self { body, _held: held }
    }
}

impl<B, H> HttpBody for Holding<B, H>
where
    B: HttpBody<Data = Bytes, Error = axum::Error> + Unpin,
    H: Unpin,
{
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
