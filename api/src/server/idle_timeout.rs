//! Whether an HTTP/2 client still takes part. On such a connection a client can leave every answer lying
//! and go on answering pings, so what counts is what moves.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};

/// What is handed over at once: what fits into one frame of every client. The next piece is asked for
/// only once the client has made room for this one, so each is a sign of life.
const PIECE_BYTES: usize = 16 << 10;

/// What moves on one connection.
pub struct Pulse(Mutex<State>);

struct State {
    /// Answers that are waited for on our side.
    working: usize,
    last: Instant,
}

impl Pulse {
    /// Of a connection that has just been made.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { working: 0, last: Instant::now() })))
    }

    /// Returns when nothing has moved for as long as `idle`, and it was not for us to move it.
    pub async fn stopped(&self, idle: Duration) {
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

    /// Notes that something moved.
    fn beat(&self) {
        self.lock().last = Instant::now();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As long as this lives, it is for us to move something.
pub struct Working(Arc<Pulse>);

impl Working {
    /// From now on.
    pub fn new(pulse: &Arc<Pulse>) -> Self {
        pulse.lock().working += 1;
        Self(pulse.clone())
    }

    /// The body of the answer that was worked on: it says when the client takes a piece, and waits for
    /// us only while `body` has none.
    pub fn hand_over(self, body: Body) -> Body {
        Body::new(Paced { body, rest: Bytes::new(), pulse: self.0.clone(), working: None })
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.working -= 1;
        state.last = Instant::now();
    }
}

/// A body in pieces.
struct Paced {
    body: Body,
    /// What has come and is not handed over yet.
    rest: Bytes,
    pulse: Arc<Pulse>,
    /// While more is waited for.
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
        this.pulse.beat();
        if this.rest.is_empty() {
            this.working.get_or_insert_with(|| Working::new(&this.pulse));
            let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
            this.working = None;
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => this.rest = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
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
    use futures::StreamExt;
    use http_body_util::BodyExt;
    use hyper::body::Body as _;
    use tokio::sync::mpsc;

    use super::*;

    const IDLE: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_body_comes_in_pieces_and_is_whole() {
        let whole: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        let mut body = Working::new(&Pulse::new()).hand_over(Body::from(whole.clone()));
        assert_eq!(body.size_hint().exact(), Some(100_000));
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            let piece = frame.expect("a frame").into_data().expect("data");
            assert!(piece.len() <= PIECE_BYTES);
            read.extend_from_slice(&piece);
            assert_eq!(body.size_hint().exact(), Some(100_000 - read.len() as u64));
        }
        assert!(body.is_end_stream());
        assert_eq!(read, whole);
    }

    #[tokio::test]
    async fn only_the_client_can_be_late() {
        let pulse = Pulse::new();
        let working = Working::new(&pulse);
        let (sender, mut pieces) = mpsc::channel::<Bytes>(1);
        let stream = futures::stream::poll_fn(move |context| pieces.poll_recv(context))
            .map(Ok::<_, std::io::Error>);
        let stopped = |pulse: &Arc<Pulse>| {
            let pulse = pulse.clone();
            async move { tokio::time::timeout(IDLE * 4, pulse.stopped(IDLE)).await.is_ok() }
        };
        assert!(!stopped(&pulse).await, "an answer is being made");
        let mut body = working.hand_over(Body::from_stream(stream));
        let next = tokio::spawn(async move { (body.frame().await.is_some(), body) });
        assert!(!stopped(&pulse).await, "the body has nothing yet");
        sender.send(Bytes::from_static(b"a piece")).await.expect("sent");
        let (came, _body) = next.await.expect("no panic");
        assert!(came);
        assert!(stopped(&pulse).await, "the client does not come for more");
    }
}
