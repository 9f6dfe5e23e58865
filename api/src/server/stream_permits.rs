//! How many requests of HTTP/2 connections there may be concurrently, over all connections.
//!
//! A connection has up to 100 requests at a time, and its client decides how long: it can leave responses unread. The
//! first request of each connection needs no permit, and one address has at most half of them, so that clients which
//! use up their permits cost others nothing but some of their concurrency.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::limits::{Permit, Shares, network};

/// Permits for requests beyond the first of each connection. Clones share them.
#[derive(Clone)]
pub struct StreamPermits(Shares<IpAddr>);

/// The requests of one connection.
pub struct ConnectionStreams {
    open: Arc<AtomicUsize>,
    /// Whose share of the permits they take.
    client: IpAddr,
    permits: StreamPermits,
}

/// A request, until its response was sent.
pub struct StreamPermit {
    open: Arc<AtomicUsize>,
    #[allow(dead_code)] // dropped, never read
    further: Option<Permit<IpAddr>>,
}

impl StreamPermits {
    /// `further` permits.
    pub fn new(further: usize) -> Self {
        Self(Shares::new(further))
    }

    /// The requests of a new connection from `client`.
    pub fn connection(&self, client: IpAddr) -> ConnectionStreams {
        ConnectionStreams { open: Arc::default(), client: network(client), permits: self.clone() }
    }
}

impl ConnectionStreams {
    /// A permit for the next request; `None` if the connection has one already, and all further ones, or those of
    /// its client, are taken.
    pub fn begin(&self) -> Option<StreamPermit> {
        let is_first = self.open.fetch_add(1, Ordering::Relaxed) == 0;
        // Counted until it is dropped, also if there is no permit.
        let mut permit = StreamPermit { open: self.open.clone(), further: None };
        if !is_first {
            let shares = &self.permits.0;
            let share = shares.limit().div_ceil(2);
            permit.further = Some(shares.acquire(&self.client, 1, share).ok()?);
        }
        Some(permit)
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_has_one_request_and_further_ones_are_bounded() {
        let permits = StreamPermits::new(6);
        let from = |client: &str| permits.connection(client.parse().expect("an address"));
        let (greedy, also_greedy) = (from("2001:db8::1"), from("2001:db8::2"));
        let (other, third) = (from("192.0.2.1"), from("::ffff:192.0.2.1"));
        let held: Vec<_> = (0..10).map_while(|_| greedy.begin()).collect();
        assert_eq!(held.len(), 1 + 3, "half of all");
        let first = also_greedy.begin().expect("the first of a connection");
        assert!(also_greedy.begin().is_none(), "the same network");
        let others: Vec<_> = (0..10).map_while(|_| other.begin()).collect();
        assert_eq!(others.len(), 1 + 3, "the other half");
        let third_one = third.begin();
        assert!(third_one.is_some() && third.begin().is_none(), "the same address");
        drop((held, first, others, third_one));
        assert_eq!(permits.0.taken(), 0);
        assert_eq!((0..10).map_while(|_| other.begin()).count(), 10, "one after the other");
    }
}
