//! The idle timeout of HTTP/2 connections. A client can leave every response unread and still answer pings,
//! so only progress counts.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};

use crate::http::pieces::Pieces;

/// The progress of one connection.
pub struct IdleTimeout(Mutex<State>);

struct State {
    /// Responses that the server is working on.
    working: usize,
    last: Instant,
}

impl IdleTimeout {
    /// Of a connection that has just been made.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { working: 0, last: Instant::now() })))
    }

    /// Returns when the client has made no progress for `idle` while the server waited for it.
    pub async fn elapsed(&self, idle: Duration) {
        loop {
            let left = {
                let state = self.lock();
                if state.working > 0 { idle } else { idle.saturating_sub(state.last.elapsed()) }
            };
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// Notes progress.
    fn progress(&self) {
        self.lock().last = Instant::now();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As long as this lives, the server is working, and the client is not late.
pub struct Working(Arc<IdleTimeout>);

impl Working {
    /// From now on.
    pub fn new(timeout: &Arc<IdleTimeout>) -> Self {
        timeout.lock().working += 1;
        Self(timeout.clone())
    }

    /// The body of the response: it records when the client takes a piece, and counts as work only while it
    /// waits for `body`.
    pub fn hand_over(self, body: Body) -> Paced {
        let timeout = self.0.clone();
        Paced { body: Pieces::new(body), timeout, working: None }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.working -= 1;
        state.last = Instant::now();
    }
}

/// A body whose pieces show that the client reads: each is asked for once there is room for it.
pub struct Paced {
    body: Pieces,
    timeout: Arc<IdleTimeout>,
    /// Set while it waits for more.
    working: Option<Working>,
}

impl hyper::body::Body for Paced {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        this.timeout.progress();
        if this.body.needs_more() {
            this.working.get_or_insert_with(|| Working::new(&this.timeout));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        this.working = None;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use http_body_util::BodyExt;
    use tokio::sync::mpsc;

    use super::*;

    const IDLE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn only_the_client_can_time_out() {
        let timeout = IdleTimeout::new();
        let working = Working::new(&timeout);
        let (sender, mut pieces) = mpsc::channel::<Bytes>(1);
        let stream = futures::stream::poll_fn(move |context| pieces.poll_recv(context))
            .map(Ok::<_, std::io::Error>);
        let elapsed = |timeout: &Arc<IdleTimeout>| {
            let timeout = timeout.clone();
            async move { tokio::time::timeout(IDLE * 4, timeout.elapsed(IDLE)).await.is_ok() }
        };
        assert!(!elapsed(&timeout).await, "a response is being made");
        let mut body = working.hand_over(Body::from_stream(stream));
        let next = tokio::spawn(async move { (body.frame().await.is_some(), body) });
        assert!(!elapsed(&timeout).await, "the body has no data yet");
        sender.send(Bytes::from_static(b"a piece")).await.expect("sent");
        let (received, _body) = next.await.expect("no panic");
        assert!(received);
        assert!(elapsed(&timeout).await, "the client does not read");
    }
}
