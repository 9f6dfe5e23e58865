//! Clients that are refused again and again, and never wait for what `Retry-After` says. Each new attempt costs the
//! node a request, and often the body that comes with it. So the response to such a client comes later, not sooner: it
//! spends its time waiting, and its body waits in its own buffers. Whatever it lacks may become free meanwhile.

use std::{
    future::pending,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use moka::sync::Cache;
use safelight_domain::Owner;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use crate::{auth::Caller, http::draining::Draining};

/// Refusals per client that are answered immediately, so that a load balancer can try another node.
const IMMEDIATE: u32 = 100;

/// The time between two refusals of a client beyond these.
const BETWEEN: Duration = Duration::from_millis(10);

/// How long a refusal is delayed at most.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// `max_connections` divided by this is how many refusals are delayed at the same time.
const DELAYED_DIVISOR: usize = 4;

/// Clients that are remembered, for as long as they are refused.
const MAX_CLIENTS: u64 = 10_000;
const REMEMBERED: Duration = Duration::from_secs(30);

/// The bits of an IPv6 address that tell networks apart; the holder of one chooses the others (RFC 4291, section
/// 2.5.4).
const NETWORK: u128 = !0 << 64;

/// The network of a client: of an IPv4 client, its address.
pub fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Who is refused.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Refused {
    /// The owner of a key.
    Owner(Owner),
    /// A client without a key, by its network, if that is known.
    Network(Option<IpAddr>),
}

impl Refused {
    /// `caller`, at `address`.
    pub fn of(caller: &Caller, address: Option<IpAddr>) -> Self {
        if caller.has_key() {
            Self::Owner(caller.owner.clone())
        } else {
            Self::Network(address.map(network))
        }
    }
}

/// The refusals of a node.
pub struct Refusals {
    /// When the next refusal of each client is due.
    due: Cache<Refused, Arc<Mutex<Instant>>>,
    /// One permit for each refusal that is delayed.
    delayed: Semaphore,
}

impl Refusals {
    /// None yet, on a node with `max_connections`.
    pub fn new(max_connections: usize) -> Self {
        let due = Cache::builder().max_capacity(MAX_CLIENTS).time_to_idle(REMEMBERED).build();
        let delayed = (max_connections / DELAYED_DIVISOR).min(Semaphore::MAX_PERMITS);
        Self { due, delayed: Semaphore::new(delayed) }
    }

    /// Returns when a refusal may be answered: immediately, if there were few for this client, or if too many are
    /// delayed already, or when the server drains.
    pub async fn delay(&self, refused: Refused, draining: &Draining) {
        self.wait_for(pending::<()>(), refused, draining).await;
    }

    /// Waits for what a client is about to be refused for want of, as long as its refusal would be delayed. `None` if it
    /// is to be refused now.
    pub async fn wait_for<T>(
        &self,
        wanted: impl Future<Output = T>,
        refused: Refused,
        Draining(draining): &Draining,
    ) -> Option<T> {
        let delay = self.count(refused);
        if delay.is_zero() {
            return None;
        }
        let _delayed = self.delayed.try_acquire().ok()?;
        draining.run_until_cancelled(timeout(delay, wanted)).await?.ok()
    }

    /// Counts a refusal, and returns how long it is to be delayed.
    fn count(&self, refused: Refused) -> Duration {
        let now = Instant::now();
        let due = self.due.get_with(refused, || Arc::new(Mutex::new(now)));
        let mut due = due.lock().unwrap_or_else(PoisonError::into_inner);
        let immediate = BETWEEN * IMMEDIATE;
        // A debt that grew without end would outlast the overload.
        *due = ((*due).max(now) + BETWEEN).min(now + immediate + MAX_DELAY);
        due.duration_since(now).saturating_sub(immediate)
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt, stream::FuturesUnordered};
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn ada() -> Refused {
        Refused::of(&Caller::test(Some("ada")), None)
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_is_refused_again_and_again_is_answered_later() {
        let (refusals, draining) = (Refusals::new(8192), Draining::default());
        let started = Instant::now();
        for _ in 0..IMMEDIATE {
            refusals.delay(ada(), &draining).await;
        }
        assert!(started.elapsed().is_zero(), "the first come immediately");
        let again: FuturesUnordered<_> =
            (0..1000).map(|_| refusals.delay(ada(), &draining)).collect();
        let bob = Refused::of(&Caller::test(Some("bob")), None);
        refusals.delay(bob, &draining).await;
        assert!(started.elapsed().is_zero(), "others are not delayed");
        assert_eq!(again.count().await, 1000);
        assert!(started.elapsed() >= MAX_DELAY, "{:?}", started.elapsed());
        assert!(started.elapsed() < MAX_DELAY + Duration::from_millis(10));
        tokio::time::advance(REMEMBERED).await;
        let later = Instant::now();
        refusals.delay(ada(), &draining).await;
        assert!(later.elapsed().is_zero(), "it has waited");
    }

    #[tokio::test(start_paused = true)]
    async fn delayed_refusals_are_bounded_and_end_when_the_server_drains() {
        let refusals = Refusals::new(4 * DELAYED_DIVISOR);
        let shutdown = CancellationToken::new();
        let draining = Draining(shutdown.clone());
        for _ in 0..IMMEDIATE {
            assert!(refusals.count(ada()).is_zero());
        }
        let mut delayed: FuturesUnordered<_> =
            (0..5).map(|_| refusals.delay(ada(), &draining)).collect();
        let started = Instant::now();
        assert_eq!(delayed.next().await, Some(()), "one is too many");
        assert!(futures::poll!(delayed.next()).is_pending());
        shutdown.cancel();
        assert_eq!(delayed.count().await, 4);
        assert!(started.elapsed().is_zero());
    }

    #[test]
    fn address_within_a_network_is_no_other_client() {
        let parse = |text: &str| text.parse::<IpAddr>().ok();
        let of = |text| Refused::of(&Caller::test(None), parse(text));
        assert!(of("2001:db8::1") == of("2001:db8::2"));
        assert!(of("192.0.2.1") == of("::ffff:192.0.2.1"));
        assert!(of("192.0.2.1") != of("192.0.2.2"));
    }
}
