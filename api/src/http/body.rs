//! Request bodies, read with a limit and a timeout.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, BodyDataStream, Bytes};
use futures::{Stream, StreamExt, future::poll_fn};
use safelight_domain::{ContentHash, ContentHasher};
use tokio::time::{Instant, Sleep, sleep};

use super::problem::{Problem, ProblemCode};

/// Why a body cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyFault {
    /// It has more bytes than allowed.
    #[error("more than {0} bytes")]
    TooLarge(u64),
    /// It sent nothing for too long.
    #[error("nothing came for too long")]
    Idle,
    /// The connection broke, or the framing did.
    #[error("broke off")]
    Broken,
}

impl From<BodyFault> for Problem {
    fn from(fault: BodyFault) -> Self {
        match fault {
            BodyFault::TooLarge(limit) => Self::upload_too_large(limit),
            BodyFault::Idle => Self::new(
                ProblemCode::UploadTimeout,
                "The upload timed out: no bytes, or too few, arrived.",
            ),
            BodyFault::Broken => {
                Self::new(ProblemCode::BrokenBody, "The body ended before it was complete.")
            }
        }
    }
}

/// How slowly a client may send.
#[derive(Clone)]
pub struct BodyPolicy {
    idle: Duration,
    bytes_per_second: u64,
}

impl BodyPolicy {
    /// With the longest silence, and the fewest bytes per second over the whole body; 0 for no minimum.
    pub fn new(idle: Duration, bytes_per_second: u64) -> Self {
        Self { idle, bytes_per_second }
    }

    /// The limits of a body of at most `bytes` bytes.
    pub fn limits(&self, bytes: u64) -> BodyLimits {
        BodyLimits { bytes, idle: self.idle, bytes_per_second: self.bytes_per_second }
    }
}

/// The limits of a body.
pub struct BodyLimits {
    /// Bytes at most.
    pub bytes: u64,
    /// The longest silence.
    pub idle: Duration,
    /// The fewest bytes for each second of waiting for the client, over the whole body; 0 for no minimum.
    /// Without it, a byte now and then would hold an upload permit forever.
    pub bytes_per_second: u64,
}

/// A body that is being read. Clones share it.
#[derive(Clone)]
pub struct BodyReader(Arc<Mutex<Reading>>);

struct Reading {
    body: BodyDataStream,
    limits: BodyLimits,
    /// Fires when nothing, or too little, has come for too long.
    silence: Pin<Box<Sleep>>,
    /// When the server began to wait for the client.
    waiting: Option<Instant>,
    /// How long it has waited for the client before that.
    waited: Duration,
    bytes: u64,
    hasher: Option<ContentHasher>,
    touched: bool,
    ended: bool,
    fault: Option<BodyFault>,
}

impl BodyReader {
    /// Reads `body`. With `hash` everything read is hashed.
    pub fn new(body: Body, limits: BodyLimits, hash: bool) -> Self {
        Self(Arc::new(Mutex::new(Reading {
            body: body.into_data_stream(),
            silence: Box::pin(sleep(limits.idle)),
            limits,
            waiting: None,
            waited: Duration::ZERO,
            bytes: 0,
            hasher: hash.then(ContentHasher::default),
            touched: false,
            ended: false,
            fault: None,
        })))
    }

    /// The next bytes; `None` at the end.
    pub async fn chunk(&self) -> Result<Option<Bytes>, BodyFault> {
        poll_fn(|context| self.reading().poll_chunk(context)).await
    }

    /// Why reading stopped, if it did.
    pub fn fault(&self) -> Option<BodyFault> {
        self.reading().fault
    }

    /// How many bytes have been read.
    pub fn bytes(&self) -> u64 {
        self.reading().bytes
    }

    /// Reads what is left and gives the hash of the whole body, if it was to be hashed.
    pub async fn finish(&self) -> Result<Option<ContentHash>, BodyFault> {
        while self.chunk().await?.is_some() {}
        Ok(self.reading().hasher.take().map(ContentHasher::finish))
    }

    /// The body for a parser that reads as long as bytes are available: after every chunk the stream is
    /// pending once, so that the parser processes what it has.
    pub fn paced(&self) -> impl Stream<Item = Result<Bytes, BodyFault>> + Send + use<> {
        let reader = self.clone();
        let mut rest = false;
        futures::stream::poll_fn(move |context| {
            if rest {
                rest = false;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let chunk = ready!(reader.reading().poll_chunk(context));
            rest = matches!(chunk, Ok(Some(_)));
            Poll::Ready(chunk.transpose())
        })
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reading {
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BodyFault>> {
        if let Some(fault) = self.fault {
            return Poll::Ready(Err(fault));
        }
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        if !self.touched {
            self.touched = true;
            // The time before the first read is not the client's fault.
            self.silence.as_mut().reset(Instant::now() + self.limits.idle);
        }
        let fault = match self.body.poll_next_unpin(context) {
            Poll::Ready(Some(Ok(chunk))) => {
                self.bytes += chunk.len() as u64;
                self.waited += self.waiting.take().map_or(Duration::ZERO, |since| since.elapsed());
                if self.bytes <= self.limits.bytes {
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&chunk);
                    }
                    let patience = self.patience();
                    self.silence.as_mut().reset(Instant::now() + patience);
                    return Poll::Ready(Ok(Some(chunk)));
                }
                BodyFault::TooLarge(self.limits.bytes)
            }
            Poll::Ready(None) => {
                self.ended = true;
                return Poll::Ready(Ok(None));
            }
            Poll::Ready(Some(Err(_))) => BodyFault::Broken,
            Poll::Pending => {
                self.waiting.get_or_insert_with(Instant::now);
                ready!(self.silence.as_mut().poll(context));
                BodyFault::Idle
            }
        };
        self.fault = Some(fault);
        Poll::Ready(Err(fault))
    }

    /// How long the next bytes may take: the longest silence, less what the client is behind.
    fn patience(&self) -> Duration {
        let BodyLimits { idle, bytes_per_second, .. } = self.limits;
        match self.bytes.checked_div(bytes_per_second) {
            Some(earned) => {
                (idle + Duration::from_secs(earned)).saturating_sub(self.waited).min(idle)
            }
            None => idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    fn limits(bytes: u64) -> BodyLimits {
        BodyLimits { bytes, idle: Duration::from_secs(30), bytes_per_second: 0 }
    }

    fn body(chunks: &[&'static [u8]]) -> Body {
        let chunks: Vec<_> =
            chunks.iter().map(|c| Ok::<_, std::io::Error>(Bytes::from_static(c))).collect();
        Body::from_stream(stream::iter(chunks))
    }

    #[tokio::test]
    async fn reader_counts_hashes_and_stops_at_the_limit() {
        let reader = BodyReader::new(body(&[b"ab", b"c"]), limits(3), true);
        assert_eq!(reader.chunk().await, Ok(Some(Bytes::from_static(b"ab"))));
        assert_eq!(reader.finish().await, Ok(Some(ContentHash::of(b"abc"))));
        let reader = BodyReader::new(body(&[b"ab", b"cd"]), limits(3), false);
        assert!(reader.chunk().await.is_ok());
        assert_eq!(reader.chunk().await, Err(BodyFault::TooLarge(3)));
        assert_eq!(reader.fault(), Some(BodyFault::TooLarge(3)));
    }

    #[tokio::test]
    async fn silent_body_times_out() {
        let silent = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let limits = BodyLimits { idle: Duration::from_millis(10), ..limits(3) };
        let reader = BodyReader::new(silent, limits, false);
        assert_eq!(reader.chunk().await, Err(BodyFault::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn body_below_the_minimum_rate_times_out() {
        let drip = |bytes: usize| {
            let chunks = stream::unfold((), move |()| async move {
                sleep(Duration::from_secs(20)).await;
                Some((Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; bytes])), ()))
            });
            let limits = BodyLimits { bytes_per_second: 10, ..limits(100_000) };
            BodyReader::new(Body::from_stream(chunks), limits, false)
        };
        // Never silent for 30 seconds, but sends 1 byte where the minimum rate requires 200.
        let slow = drip(1);
        assert!(slow.chunk().await.is_ok());
        assert_eq!(slow.chunk().await, Err(BodyFault::Idle));
        let steady = drip(200);
        for _ in 0..100 {
            assert!(steady.chunk().await.is_ok());
        }
    }

    #[tokio::test]
    async fn paced_body_is_complete_and_pauses_after_each_chunk() {
        let reader = BodyReader::new(body(&[b"ab", b"c"]), limits(9), false);
        let mut paced = Box::pin(reader.paced());
        let first = futures::poll!(paced.next());
        assert_eq!(first, Poll::Ready(Some(Ok(Bytes::from_static(b"ab")))));
        assert!(futures::poll!(paced.next()).is_pending());
        assert_eq!(paced.next().await, Some(Ok(Bytes::from_static(b"c"))));
        assert_eq!(paced.next().await, None);
    }
}
