//! Access without a key: from the machine itself, before there are any keys.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, header, uri::Authority};
use safelight_store::Access;

use crate::http::problem::Problem;

/// How long a look-up that found no keys is trusted: the first key ends loopback access on every node that
/// fast.
const TRUSTED_FOR: Duration = Duration::from_millis(500);

/// What proxies add, beside `X-Forwarded-…`. A request through a proxy may come from anywhere.
const FORWARDED: [HeaderName; 3] =
    [header::FORWARDED, header::VIA, HeaderName::from_static("x-real-ip")];

/// Browsers mark requests of pages of other origins with it (W3C Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Access without a key. The first key closes it for good.
pub struct LoopbackAccess {
    store: Arc<dyn Access>,
    is_local: bool,
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
    pub fn new(store: Arc<dyn Access>, is_local: bool) -> Self {
        Self { store, is_local, seen: Mutex::new(Seen::Nothing) }
    }

    /// Whether a request without a key is allowed: it names this machine, has not come through a proxy, and
    /// no key was ever created.
    ///
    /// The name matters because a web page can have its own name resolve to this machine (DNS rebinding), and
    /// a proxy on this machine passes on the name that it was asked for. A page of another origin can send
    /// simple requests to this machine; browsers mark them.
    pub async fn is_open(
        &self,
        headers: &HeaderMap,
        authority: Option<&str>,
    ) -> Result<bool, Problem> {
        if !self.is_local || !is_from_here(headers, authority) {
            return Ok(false);
        }
        match self.seen() {
            Seen::Keys => return Ok(false),
            Seen::NoKeys(at) if at.elapsed() < TRUSTED_FOR => return Ok(true),
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
        Ok(matches!(seen, Seen::NoKeys(_)))
    }

    /// What is known without asking the database: open, if it was.
    fn last_known(&self) -> Option<bool> {
        matches!(self.seen(), Seen::NoKeys(_)).then_some(true)
    }

    fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_from_here(headers: &HeaderMap, authority: Option<&str>) -> bool {
    let is_forwarded =
        |name: &HeaderName| FORWARDED.contains(name) || name.as_str().starts_with("x-forwarded-");
    if headers.keys().any(is_forwarded) || is_from_another_page(headers) {
        return false;
    }
    let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    [authority, host].iter().flatten().all(|name| is_this_machine(name))
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
        for (name, value) in [
            ("forwarded", "for=127.0.0.1"),
            ("via", "1.1 proxy"),
            ("x-real-ip", "127.0.0.1"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-proto", "https"),
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
