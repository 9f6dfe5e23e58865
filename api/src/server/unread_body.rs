//! What a response leaves unread of its request's body. The client may still be sending, and if the connection ended
//! with unread bytes, the reset could remove the response before the client has read it.
//!
//! Nothing is read until there is a response. Then, over HTTP/1, the connection [lingers](super::lingering) and ends;
//! over HTTP/2 what is on its way is read, and the library tells the client to stop (RFC 9113, section 8.1).

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Bytes, HttpBody},
    http::{HeaderValue, header},
    response::Response,
};
use http_body_util::BodyExt;
use hyper::{
    Request,
    body::{Frame, Incoming, SizeHint},
};
use tokio::{sync::Semaphore, time::timeout};

use super::lingering::Lingers;

/// The largest body that hyper probably has in its buffer: then it reads the body itself, and the connection goes on.
const BUFFERED_BYTES: u64 = 16 * 1024;

/// Bytes of an HTTP/2 request's body that are read after its response: what the client may have on its way.
const HTTP2_BYTES: usize = 1024 * 1024;

/// How long they are read.
const HTTP2_TIME: Duration = Duration::from_secs(5);

/// HTTP/2 bodies that are read after their response at the same time.
static HTTP2_READ: Semaphore = Semaphore::const_new(64);

/// The body of a request. If its handler drops it before the end, it stays in [`Unread`].
pub struct RequestBody {
    body: Option<Incoming>,
    ended: bool,
    unread: Option<Unread>,
}

/// A body that its handler did not read to its end, if there is one.
#[derive(Clone, Default)]
pub struct Unread(Arc<Mutex<Option<Incoming>>>);

impl RequestBody {
    /// The request with such a body, and what will be left of it, if it has any.
    pub fn of(request: Request<Incoming>) -> (Request<Self>, Option<Unread>) {
        let unread = (!request.body().is_end_stream()).then(Unread::default);
        let of = |body| Self { body: Some(body), ended: false, unread: unread.clone() };
        (request.map(of), unread)
    }
}

impl Unread {
    /// Gets the connection ready for the end of `response`.
    pub fn settle(&self, http2: bool, lingers: &Lingers, response: &mut Response) {
        let Some(body) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return;
        };
        if http2 {
            read_some(body);
            return;
        }
        lingers.set();
        if body.size_hint().upper().is_none_or(|bytes| bytes > BUFFERED_BYTES) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// Reads what is on its way, within bounds.
fn read_some(mut body: Incoming) {
    let Ok(permit) = HTTP2_READ.try_acquire() else { return };
    tokio::spawn(async move {
        let mut left = HTTP2_BYTES;
        let read = async {
            while let Some(Ok(frame)) = body.frame().await {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                if left == 0 {
                    break;
                }
            }
        };
        let _ = timeout(HTTP2_TIME, read).await;
        drop(permit);
    });
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(context);
        this.ended |= matches!(frame, Poll::Ready(None | Some(Err(_))));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(Unread(unread)) = self.unread.take()
            && !self.ended
            && !self.is_end_stream()
        {
            *unread.lock().unwrap_or_else(PoisonError::into_inner) = self.body.take();
        }
    }
}
