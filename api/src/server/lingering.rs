//! The end of a connection whose client may still be sending. Closing it would reset it, and a client that sends all
//! before it reads would never see the response (RFC 9112, section 9.6). So the server ends its own direction first,
//! and discards what arrives, bounded in bytes and time, until the client ends its direction.
//!
//! This is a stream below TLS: what is discarded is never decrypted.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// Bytes that are discarded at most.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// How long they are discarded at most, and how long the client may send nothing.
const MAX_TIME: Duration = Duration::from_secs(10);
const MAX_SILENCE: Duration = Duration::from_secs(2);

/// Bytes that one connection discards before others have their turn.
const TURN_BYTES: usize = 128 * 1024;

/// Bytes that are discarded at a time.
const BUFFER_BYTES: usize = 16 * 1024;

/// Bytes per second that all connections of a server discard together: a small part of one processor.
const BYTES_PER_SECOND: u64 = 256 * 1024 * 1024;

/// The pace of what a server discards. Clones are the same.
#[derive(Clone)]
pub struct Pace(Arc<Mutex<Instant>>);

impl Pace {
    /// Of a server that has discarded nothing.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// Counts `bytes` that were discarded. Returns when the next may be.
    fn count(&self, bytes: usize) -> Instant {
        let takes = Duration::from_nanos(bytes as u64 * 1_000_000_000 / BYTES_PER_SECOND);
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(Instant::now()) + takes;
        *next
    }
}

/// Whether a connection lingers when it ends. Clones are the same.
#[derive(Clone, Default)]
pub struct Lingers(Arc<AtomicBool>);

impl Lingers {
    /// The client may still be sending when the connection ends.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The client sends another request, so everything before it was read.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A stream that lingers when it is shut down, if it is to.
pub struct LingeringStream<S> {
    stream: S,
    lingers: Lingers,
    pace: Pace,
    ending: Option<Ending>,
}

/// The server has ended its direction.
struct Ending {
    until: Instant,
    bytes: usize,
    /// Fires when the client has sent nothing for too long; while `pauses`, when the next turn begins.
    timer: Pin<Box<Sleep>>,
    pauses: bool,
}

impl<S> LingeringStream<S> {
    /// Over a new connection.
    pub fn new(stream: S, lingers: Lingers, pace: Pace) -> Self {
        Self { stream, lingers, pace, ending: None }
    }
}

impl<S: AsyncRead + Unpin> LingeringStream<S> {
    /// Discards what arrives until nothing is to be expected.
    fn poll_discard(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(ending) = &mut self.ending else { return Poll::Ready(()) };
        loop {
            if ending.pauses {
                ready!(ending.timer.as_mut().poll(context));
                ending.pauses = false;
                let silent_at = (Instant::now() + MAX_SILENCE).min(ending.until);
                ending.timer.as_mut().reset(silent_at);
            }
            let mut turn = 0;
            while turn < TURN_BYTES {
                let mut space = [MaybeUninit::uninit(); BUFFER_BYTES];
                let mut buffer = ReadBuf::uninit(&mut space);
                match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                    Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                        turn += buffer.filled().len();
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending if turn == 0 => return ending.timer.as_mut().poll(context),
                    Poll::Pending => break,
                }
            }
            ending.bytes += turn;
            if ending.bytes >= MAX_BYTES || Instant::now() >= ending.until {
                return Poll::Ready(());
            }
            ending.timer.as_mut().reset(self.pace.count(turn));
            ending.pauses = true;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LingeringStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LingeringStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ending.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            if !this.lingers.0.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
            let (until, timer) = (Instant::now() + MAX_TIME, Box::pin(sleep(MAX_SILENCE)));
            this.ending = Some(Ending { until, bytes: 0, timer, pauses: false });
        }
        this.poll_discard(context).map(Ok)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// A stream that ends, and its client.
    fn ending(lingers: &Lingers, pace: &Pace) -> (DuplexStream, impl Future + use<>) {
        let (client, server) = duplex(64 * 1024);
        let mut stream = LingeringStream::new(server, lingers.clone(), pace.clone());
        (client, async move { stream.shutdown().await })
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_still_sends_is_read_at_the_pace_of_the_server() {
        let (lingers, pace) = (Lingers::default(), Pace::new());
        lingers.set();
        let (mut client, ending) = ending(&lingers, &pace);
        let ended = tokio::spawn(async move {
            let _ = ending.await;
        });
        let started = Instant::now();
        client.write_all(&vec![0; 32 * 1024 * 1024]).await.expect("the server reads");
        assert_eq!(client.read(&mut [0; 1]).await.expect("readable"), 0, "its direction has ended");
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(120) && took < Duration::from_secs(1), "{took:?}");
        assert!(!ended.is_finished());
        drop(client);
        ended.await.expect("no panic");
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_sends_nothing_or_without_end_is_left() {
        let (lingers, pace) = (Lingers::default(), Pace::new());
        let started = Instant::now();
        ending(&lingers, &pace).1.await;
        assert!(started.elapsed().is_zero(), "nothing was left unread");
        lingers.set();
        let (client, silent) = ending(&lingers, &pace);
        silent.await;
        assert!(started.elapsed() < MAX_SILENCE + Duration::from_millis(10));
        drop(client);
        let (mut client, endless) = ending(&lingers, &pace);
        let sending = tokio::spawn(async move {
            while client.write_all(&[0; 1000]).await.is_ok() {
                sleep(Duration::from_millis(100)).await;
            }
        });
        let started = Instant::now();
        endless.await;
        assert!(started.elapsed() <= MAX_TIME + MAX_SILENCE);
        sending.abort();
    }
}
