//! A TCP proxy between a node and an engine. Tests use it to cut, freeze or slow down the network.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
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
    link: watch::Sender<Link>,
    runtime: Option<Runtime>,
}

impl Chaos {
    /// Listens on a free port and forwards everything to `port` on 127.0.0.1.
    pub fn start(port: u16) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("chaos")
            .enable_all()
            .build()?;
        let (link, state) = watch::channel(Link::Up);
        let (ready, listening) = mpsc::channel();
        runtime.spawn(async move {
            match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await {
                Ok(listener) => {
                    let _ = ready.send(listener.local_addr());
                    accept(listener, port, state).await;
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        let address = listening.recv().context("the proxy died")?.context("the proxy's port")?;
        Ok(Self { address, link, runtime: Some(runtime) })
    }

    /// The port on which it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes the state of the network, also for open connections.
    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
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

async fn accept(listener: TcpListener, port: u16, state: watch::Receiver<Link>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        tokio::spawn(forward(client, port, state.clone()));
    }
}

/// Forwards a connection until either side ends it or the link is cut.
async fn forward(client: TcpStream, port: u16, mut state: watch::Receiver<Link>) {
    // Dropping the connection then resets it instead of closing it.
    let _ = client.set_zero_linger();
    let cut = {
        let mut state = state.clone();
        async move { drop(state.wait_for(|link| *link == Link::Cut).await) }
    };
    let both_directions = async {
        wait_until_up(&mut state).await;
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let _ = (server.set_zero_linger(), server.set_nodelay(true), client.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) =
            (client.into_split(), server.into_split());
        let is_request_sent = Arc::new(AtomicBool::new(false));
        tokio::select! {
            ended = pump(from_client, to_server, state.clone(), |_| {
                is_request_sent.store(true, Ordering::Relaxed);
                None
            }) => ended,
            ended = pump(from_server, to_client, state, |link| match link {
                Link::Slow(delay) if is_request_sent.swap(false, Ordering::Relaxed) => Some(delay),
                _ => None,
            }) => ended,
        }
    };
    tokio::select! {
        () = cut => {}
        _ = both_directions => {}
    }
}

/// Forwards one direction. Holds the bytes until the link is up, and then for the time that `delay` returns.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<Link>,
    delay: impl Fn(Link) -> Option<Duration>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        let link = wait_until_up(&mut state).await;
        if let Some(delay) = delay(link) {
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
