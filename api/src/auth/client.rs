//! Who is at the other end of a connection: asked at most once, and only while no key exists.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use axum::http::{HeaderMap, Uri, uri::Authority};
use tokio::{net::TcpStream, sync::OnceCell};

use super::sockets::{Sockets, Stranger};

/// Where a request comes from. Clones are the same client.
#[derive(Clone)]
pub enum Client {
    /// This process itself.
    ThisProcess,
    /// A connection.
    Connection(Arc<Connection>),
}

/// A connection that was accepted.
pub struct Connection {
    /// The addresses of the client and of the server, if the connection still had them.
    ends: Option<(SocketAddr, SocketAddr)>,
    accepted: Instant,
    checked: OnceCell<Result<(), Stranger>>,
}

/// What a request says of its sender.
#[derive(Clone, Copy)]
pub struct Sender<'a> {
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The authority of the request's target, if it has one: HTTP/2 requests do.
    pub authority: Option<&'a str>,
    /// Where it comes from; `None` if nobody noted it, which proves nothing.
    pub client: Option<&'a Client>,
}

impl<'a> Sender<'a> {
    /// Of a request for `uri`.
    pub fn new(uri: &'a Uri, headers: &'a HeaderMap, client: Option<&'a Client>) -> Self {
        Self { headers, authority: uri.authority().map(Authority::as_str), client }
    }
}

impl Client {
    /// At the other end of `stream`.
    pub fn connected(stream: &TcpStream) -> Self {
        let ends = stream.peer_addr().and_then(|client| Ok((client, stream.local_addr()?))).ok();
        let (accepted, checked) = (Instant::now(), OnceCell::new());
        Self::Connection(Arc::new(Connection { ends, accepted, checked }))
    }

    /// The address of a connection.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::ThisProcess => None,
            Self::Connection(connection) => connection.ends.map(|(client, _)| client.ip()),
        }
    }

    /// Whether it is a program that the user who runs this process has started on this machine for itself; otherwise
    /// what it is instead.
    pub async fn is_own(&self, sockets: &Sockets) -> Result<(), Stranger> {
        let Self::Connection(connection) = self else { return Ok(()) };
        let Connection { ends, accepted, checked } = &**connection;
        let Some((client, server)) = *ends else { return Err(Stranger::Unknown) };
        checked.get_or_init(|| sockets.check(client, server, *accepted)).await.clone()
    }
}
