//! A TCP proxy that a test can cut, freeze or slow: the network between a node and an engine.

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

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// It carries everything.
    Up,
    /// Connections are reset, new ones as soon as they come.
    Cut,
    /// Connections stay open and carry nothing, new ones too. What is on its way arrives when the
    /// link is up again.
    BlackHole,
    /// It carries everything, but the first byte of each answer comes this much later: an engine
    /// that is far away. For protocols that ask one thing at a time.
    Slow(Duration),
}

impl Link {
    fn carries(self) -> bool {
        matches!(self, Self::Up | Self::Slow(_))
    }
}

/// A running proxy. Threads of its own carry the bytes, whatever the caller's runtime does.
pub struct Chaos {
    address: SocketAddr,
    link: watch::Sender<Link>,
    runtime: Option<Runtime>,
}

impl Chaos {
    /// Listens on a free port and carries everything to `port` on 127.0.0.1.
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

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes what the network does, for open connections as well.
    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        // A runtime must not be waited for within another.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, port: u16, state: watch::Receiver<Link>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        tokio::spawn(carry(client, port, state.clone()));
    }
}

/// Carries one connection until either side ends it or the link is cut.
async fn carry(client: TcpStream, port: u16, mut state: watch::Receiver<Link>) {
    // Dropped now or later, it is reset rather than closed in good order.
    let _ = client.set_zero_linger();
    let cut = {
        let mut state = state.clone();
        async move { drop(state.wait_for(|link| *link == Link::Cut).await) }
    };
    let both = async {
        is_up(&mut state).await;
        let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let _ = (server.set_zero_linger(), server.set_nodelay(true), client.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) =
            (client.into_split(), server.into_split());
        let asked = Arc::new(AtomicBool::new(false));
        tokio::select! {
            ended = pump(from_client, to_server, state.clone(), |_| {
                asked.store(true, Ordering::Relaxed);
                None
            }) => ended,
            ended = pump(from_server, to_client, state, |link| match link {
                Link::Slow(delay) if asked.swap(false, Ordering::Relaxed) => Some(delay),
                _ => None,
            }) => ended,
        }
    };
    tokio::select! {
        () = cut => {}
        _ = both => {}
    }
}

/// One direction. Holds what it has read for as long as the link is no way, and then for as long
/// as `delay` says.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<Link>,
    delay: impl Fn(Link) -> Option<Duration>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        let link = is_up(&mut state).await;
        if let Some(delay) = delay(link) {
            tokio::time::sleep(delay).await;
        }
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
    }
}

async fn is_up(state: &mut watch::Receiver<Link>) -> Link {
    // The sender lives as long as the proxy.
    state.wait_for(|link| link.carries()).await.map_or(Link::Up, |link| *link)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// A server that sends back what comes.
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
        let mut answer = [0; 1];
        stream.write_all(b"a").await?;
        timeout(SOON, stream.read_exact(&mut answer)).await??;
        assert_eq!(&answer, b"a");

        chaos.set(Link::BlackHole);
        stream.write_all(b"b").await?;
        let early = timeout(Duration::from_millis(200), stream.read_exact(&mut answer)).await;
        assert!(early.is_err(), "nothing may pass");
        chaos.set(Link::Up);
        timeout(SOON, stream.read_exact(&mut answer)).await??;
        assert_eq!(&answer, b"b", "and nothing is lost");

        chaos.set(Link::Cut);
        let ended = timeout(SOON, stream.read(&mut answer)).await?;
        assert!(!matches!(ended, Ok(1..)), "{ended:?}");
        // Reset at once, or after the greeting.
        if let Ok(mut refused) = TcpStream::connect((Ipv4Addr::LOCALHOST, chaos.port())).await {
            let ended = timeout(SOON, refused.read(&mut answer)).await?;
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
        let began = Instant::now();
        for _ in 0..3 {
            stream.write_all(b"abc").await?;
            let mut answer = [0; 3];
            timeout(SOON, stream.read_exact(&mut answer)).await??;
            assert_eq!(&answer, b"abc");
        }
        assert!(began.elapsed() >= delay * 3, "{:?}", began.elapsed());
        Ok(())
    }
}
