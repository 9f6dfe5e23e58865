//! A TCP proxy between a node and an engine. Tests use it to cut, freeze or slow down the network.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Runtime,
    sync::watch,
};

/// The state of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Forwards everything.
    Up,
    /// Resets all connections, also new ones.
    Cut,
    /// Keeps all connections open, also new ones, and forwards nothing. Held bytes arrive when the link is up
    /// again.
    BlackHole,
    /// Freezes all connections for good, also new ones: they stay open, and what is sent on them never arrives, also
    /// when the link is up again. Only connections that are opened then work.
    Frozen,
    /// Forwards everything, but delays the first byte of each response by this time, like a distant engine.
    /// For protocols with one request at a time.
    Slow(Duration),
}

impl Link {
    fn forwards(self) -> bool {
        matches!(self, Self::Up | Self::Slow(_))
    }
}

/// A running proxy. It has its own thread, so it is independent of the caller's runtime.
pub struct Chaos {
    address: SocketAddr,
    /// How often all connections were frozen.
    freezes: Arc<AtomicU64>,
    link: watch::Sender<Link>,
    damages: Damages,
    runtime: Option<Runtime>,
}

/// How many of the next chunks from the server are to be damaged.
type Damages = Arc<AtomicUsize>;

/// Chunks from here on are damaged: larger than the head of a response, so that the damage is in its body.
const DAMAGED_CHUNK_BYTES: usize = 2048;

impl Chaos {
    /// Listens on a free port and forwards everything to `port` on 127.0.0.1.
    pub fn start(port: u16) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("chaos")
            .enable_all()
            .build()?;
        let (link, state) = watch::channel(Link::Up);
        let freezes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&freezes);
        let (ready, listening) = mpsc::channel();
        let damages = Damages::default();
        let shared = damages.clone();
        runtime.spawn(async move {
            match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await {
                Ok(listener) => {
                    let _ = ready.send(listener.local_addr());
                    accept(listener, port, state, shared, counted).await;
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        let address = listening.recv().context("the proxy died")?.context("the proxy's port")?;
        Ok(Self { address, freezes, link, damages, runtime: Some(runtime) })
    }

    /// The port on which it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes the state of the network, also for open connections.
    pub fn set(&self, link: Link) {
        if link == Link::Frozen {
            self.freezes.fetch_add(1, Ordering::SeqCst);
        }
        self.link.send_replace(link);
    }

    /// Changes one byte in each of the next `count` large chunks from the server, as broken memory on the way does.
    pub fn damage_next(&self, count: usize) {
        self.damages.store(count, Ordering::SeqCst);
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        // A runtime must not block on the shutdown of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(
    listener: TcpListener,
    port: u16,
    state: watch::Receiver<Link>,
    damages: Damages,
    freezes: Arc<AtomicU64>,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let frost = Frost {
            at_start: *state.borrow() == Link::Frozen,
            freezes_before: freezes.load(Ordering::SeqCst),
            freezes: Arc::clone(&freezes),
        };
        tokio::spawn(forward(client, port, state.clone(), damages.clone(), frost));
    }
}

/// Whether a connection was frozen, which never ends.
struct Frost {
    at_start: bool,
    freezes_before: u64,
    freezes: Arc<AtomicU64>,
}

impl Frost {
    fn is_frozen(&self) -> bool {
        self.at_start || self.freezes.load(Ordering::SeqCst) != self.freezes_before
    }
}

/// Forwards a connection until either side ends it or the link is cut.
async fn forward(
    client: TcpStream,
    port: u16,
    mut state: watch::Receiver<Link>,
    damages: Damages,
    frost: Frost,
) {
    // Dropping the connection then resets it instead of closing it.
    let _ = client.set_zero_linger();
    let cut = {
        let mut state = state.clone();
        async move { drop(state.wait_for(|link| *link == Link::Cut).await) }
    };
    let both_directions = async {
        if !frost.is_frozen() {
            wait_until_up(&mut state).await;
        }
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let _ = (server.set_zero_linger(), server.set_nodelay(true), client.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) =
            (client.into_split(), server.into_split());
        let is_request_sent = Arc::new(AtomicBool::new(false));
        tokio::select! {
            ended = pump(from_client, to_server, state.clone(), &frost, |_, _| {
                is_request_sent.store(true, Ordering::Relaxed);
                None
            }) => ended,
            ended = async {
                let ended = pump(from_server, to_client, state, &frost, |link, chunk| {
                    damage(chunk, &damages);
                    match link {
                        Link::Slow(delay) if is_request_sent.swap(false, Ordering::Relaxed) => {
                            Some(delay)
                        }
                        _ => None,
                    }
                });
                let ended = ended.await;
                // The client does not learn that the server has closed a frozen connection.
                if frost.is_frozen() {
                    std::future::pending::<()>().await;
                }
                ended
            } => ended,
        }
    };
    tokio::select! {
        () = cut => {}
        _ = both_directions => {}
    }
}

/// Changes the last byte of a chunk that is to be damaged.
fn damage(chunk: &mut [u8], damages: &Damages) {
    let is_large = chunk.len() >= DAMAGED_CHUNK_BYTES;
    let left = |count: usize| count.checked_sub(1).filter(|_| is_large);
    let is_damaged = damages.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok();
    if let Some(last) = chunk.last_mut().filter(|_| is_damaged) {
        *last ^= 1;
    }
}

/// Forwards one direction. Holds each chunk until the link is up, and then for the time that `seen` returns for it.
/// Drops those of a frozen connection.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<Link>,
    frost: &Frost,
    seen: impl Fn(Link, &mut [u8]) -> Option<Duration>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        if frost.is_frozen() {
            if count == 0 {
                return Ok(());
            }
            continue;
        }
        let link = wait_until_up(&mut state).await;
        if let Some(delay) = seen(link, &mut buffer[..count]) {
            tokio::time::sleep(delay).await;
        }
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
    }
}

async fn wait_until_up(state: &mut watch::Receiver<Link>) -> Link {
    // The sender lives as long as the proxy.
    state.wait_for(|link| link.forwards()).await.map_or(Link::Up, |link| *link)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::time::timeout;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Starts a server that returns all bytes.
    async fn echo() -> Result<u16> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        Ok(port)
    }

    #[tokio::test]
    async fn black_hole_delays_and_cut_resets() -> Result<()> {
        let chaos = Chaos::start(echo().await?)?;
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, chaos.port())).await?;
        let mut response = [0; 1];
        stream.write_all(b"a").await?;
        timeout(LIMIT, stream.read_exact(&mut response)).await??;
        assert_eq!(&response, b"a");

        chaos.set(Link::BlackHole);
        stream.write_all(b"b").await?;
        let early = timeout(Duration::from_millis(200), stream.read_exact(&mut response)).await;
        assert!(early.is_err(), "nothing is forwarded");
        chaos.set(Link::Up);
        timeout(LIMIT, stream.read_exact(&mut response)).await??;
        assert_eq!(&response, b"b", "nothing is lost");

        chaos.set(Link::Cut);
        let ended = timeout(LIMIT, stream.read(&mut response)).await?;
        assert!(!matches!(ended, Ok(1..)), "{ended:?}");
        // The proxy may reset it before or after it is established.
        if let Ok(mut reset) = TcpStream::connect((Ipv4Addr::LOCALHOST, chaos.port())).await {
            let ended = timeout(LIMIT, reset.read(&mut response)).await?;
            assert!(!matches!(ended, Ok(1..)), "{ended:?}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn frozen_connection_stays_frozen_and_new_one_works() -> Result<()> {
        let chaos = Chaos::start(echo().await?)?;
        let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, chaos.port()));
        let mut used = connect().await?;
        let mut response = [0; 1];
        used.write_all(b"a").await?;
        timeout(LIMIT, used.read_exact(&mut response)).await??;

        chaos.set(Link::Frozen);
        let mut opened_meanwhile = connect().await?;
        opened_meanwhile.write_all(b"b").await?;
        used.write_all(b"b").await?;
        let early = timeout(Duration::from_millis(200), used.read_exact(&mut response)).await;
        assert!(early.is_err(), "the connection is open and silent");
        chaos.set(Link::Up);
        let mut new = connect().await?;
        new.write_all(b"c").await?;
        timeout(LIMIT, new.read_exact(&mut response)).await??;
        assert_eq!(&response, b"c");
        for frozen in [&mut used, &mut opened_meanwhile] {
            frozen.write_all(b"d").await?;
            let late = timeout(Duration::from_millis(200), frozen.read_exact(&mut response)).await;
            assert!(late.is_err(), "the connection is still open and silent");
        }
        Ok(())
    }

    #[tokio::test]
    async fn slow_link_delays_each_answer_once() -> Result<()> {
        let chaos = Chaos::start(echo().await?)?;
        let delay = Duration::from_millis(50);
        chaos.set(Link::Slow(delay));
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, chaos.port())).await?;
        let started = Instant::now();
        for _ in 0..3 {
            stream.write_all(b"abc").await?;
            let mut response = [0; 3];
            timeout(LIMIT, stream.read_exact(&mut response)).await??;
            assert_eq!(&response, b"abc");
        }
        assert!(started.elapsed() >= delay * 3, "{:?}", started.elapsed());
        Ok(())
    }
}
