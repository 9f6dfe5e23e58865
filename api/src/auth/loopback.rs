//! Access without a key: for the programs of the user who runs the server, before there are any keys.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, header, uri::Authority};
use safelight_domain::secrets::ApiSecret;
use safelight_store::Access;

use super::{
    client::Sender,
    key_needed::KeyNeeded,
    sockets::{Sockets, Stranger},
};
use crate::http::problem::Problem;

/// How long a look-up that found no keys is trusted: the first key ends loopback access on every node that
/// fast.
const TRUSTED_FOR: Duration = Duration::from_millis(500);

/// What proxies add, beside `X-Forwarded-…`. A request through a proxy may come from anywhere.
const FORWARDED: [HeaderName; 6] = [
    header::FORWARDED,
    header::VIA,
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("cdn-loop"),
    HeaderName::from_static("cf-connecting-ip"),
    HeaderName::from_static("true-client-ip"),
];

/// Browsers mark requests of pages of other origins with it (W3C Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Access without a key of the database. The first key closes it for good.
pub struct LoopbackAccess {
    store: Arc<dyn Access>,
    is_local: bool,
    /// The secret that whoever can read the data directory may send instead, from any program.
    local_key: Option<ApiSecret>,
    sockets: Sockets,
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy)]
enum Seen {
    Nothing,
    NoKeys(Instant),
    Keys,
}

impl LoopbackAccess {
    /// Open only if the server `is_local`: for its own machine alone.
    pub fn new(store: Arc<dyn Access>, is_local: bool, local_key: Option<ApiSecret>) -> Self {
        let (sockets, seen) = (Sockets::default(), Mutex::new(Seen::Nothing));
        Self { store, is_local, local_key, sockets, seen }
    }

    /// Whether `secret` is the local key.
    pub fn is_local_key(&self, secret: &ApiSecret) -> bool {
        let hash = secret.hash();
        self.is_local && self.local_key.as_ref().is_some_and(|key| key.is(&hash))
    }

    /// Whether no key was ever created.
    pub async fn is_keyless(&self) -> Result<bool, Problem> {
        Ok(!self.has_keys().await?)
    }

    /// Whether a request without a key is allowed: it names this machine, has not come through a proxy, no key was
    /// ever created, and the program that sends it is the own one of the user who runs this server.
    ///
    /// The program is what proves it, since a proxy can send any headers. The name matters because a web page can
    /// have its own name resolve to this machine (DNS rebinding). A page of another origin can send simple requests
    /// to this machine; browsers mark them.
    pub async fn admit(&self, sender: Sender<'_>) -> Result<Result<(), KeyNeeded>, Problem> {
        if !self.is_local {
            return Ok(Err(KeyNeeded::Public));
        }
        if let Err(why) = is_from_here(sender.headers, sender.authority) {
            // Once there are keys, this would be no reason.
            let has_keys = self.has_keys().await.unwrap_or(false);
            return Ok(Err(if has_keys { KeyNeeded::KeysExist } else { why }));
        }
        if self.has_keys().await? {
            return Ok(Err(KeyNeeded::KeysExist));
        }
        let own = match sender.client {
            Some(client) => client.is_own(&self.sockets).await,
            None => Err(Stranger::Unknown),
        };
        Ok(own.map_err(KeyNeeded::Stranger))
    }

    /// Whether a key was ever created.
    async fn has_keys(&self) -> Result<bool, Problem> {
        match self.seen() {
            Seen::Keys => return Ok(true),
            Seen::NoKeys(at) if at.elapsed() < TRUSTED_FOR => return Ok(false),
            Seen::NoKeys(_) | Seen::Nothing => {}
        }
        // Taken before the query, so that its result is never trusted for longer.
        let asked = Instant::now();
        let seen = match self.store.has_api_keys().await {
            Ok(true) => Seen::Keys,
            Ok(false) => Seen::NoKeys(asked),
            // No key can be created while the database is unavailable, and an operator may need metrics.
            Err(error) if error.is_unavailable() => return self.last_known().ok_or(error.into()),
            Err(error) => return Err(error.into()),
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        Ok(matches!(seen, Seen::Keys))
    }

    /// What is known without asking the database: no keys, if there were none.
    fn last_known(&self) -> Option<bool> {
        matches!(self.seen(), Seen::NoKeys(_)).then_some(false)
    }

    fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_from_here(headers: &HeaderMap, authority: Option<&str>) -> Result<(), KeyNeeded> {
    let is_forwarded =
        |name: &&HeaderName| FORWARDED.contains(name) || name.as_str().starts_with("x-forwarded-");
    if let Some(name) = headers.keys().find(is_forwarded) {
        return Err(KeyNeeded::Forwarded(name.clone()));
    }
    if is_from_another_page(headers) {
        return Err(KeyNeeded::OtherPage);
    }
    let hosts = headers.get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or_default());
    let is_here = authority.into_iter().chain(hosts).all(is_this_machine);
    if is_here { Ok(()) } else { Err(KeyNeeded::OtherName) }
}

fn is_from_another_page(headers: &HeaderMap) -> bool {
    let site = headers.get(SEC_FETCH_SITE).map(axum::http::HeaderValue::as_bytes);
    let elsewhere = site.is_some_and(|site| !matches!(site, b"same-origin" | b"none"));
    let origin = headers.get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
    let is_own = |origin: &str| {
        origin.split_once("://").is_some_and(|(_, authority)| is_this_machine(authority))
    };
    elsewhere || origin.is_some_and(|origin| !is_own(origin))
}

/// Whether a host with or without port names this machine, and no DNS server can change that.
fn is_this_machine(name: &str) -> bool {
    let Ok(authority) = name.parse::<Authority>() else { return false };
    if name.contains('@') {
        return false;
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_requests_addressed_to_loopback_are_from_here() {
        let is_from_here =
            |headers: &HeaderMap, authority| is_from_here(headers, authority).is_ok();
        let with_host = |host: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            headers
        };
        for host in ["127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:8080", "127.9.9.9"] {
            assert!(is_from_here(&with_host(host), None), "{host}");
        }
        for host in
            ["a@localhost", "example.org", "127.0.0.1.example.org", "192.168.0.1:80", "", "a b"]
        {
            assert!(!is_from_here(&with_host(host), None), "{host}");
        }
        assert!(is_from_here(&HeaderMap::new(), Some("localhost:8080")));
        // A request without a host comes from neither a browser nor a proxy.
        assert!(is_from_here(&HeaderMap::new(), None));
        assert!(!is_from_here(&with_host("localhost"), Some("example.org")));
        let mut two = with_host("localhost");
        two.append(header::HOST, HeaderValue::from_static("example.org"));
        assert!(!is_from_here(&two, None), "every one of several names counts");
        for (name, value) in [
            ("forwarded", "for=127.0.0.1"),
            ("via", "1.1 proxy"),
            ("x-real-ip", "127.0.0.1"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("cdn-loop", "cloudflare"),
            ("cf-connecting-ip", "127.0.0.1"),
            ("true-client-ip", "127.0.0.1"),
            ("origin", "https://example.org"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            let mut headers = with_host("localhost");
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            assert!(!is_from_here(&headers, None), "{name}: {value}");
        }
        for (name, value) in [("origin", "http://localhost:8080"), ("sec-fetch-site", "none")] {
            let mut headers = with_host("localhost");
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            assert!(is_from_here(&headers, None), "{name}: {value}");
        }
    }
}
