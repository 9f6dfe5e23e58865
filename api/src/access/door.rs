//! Whether somebody without a key may come in: on a machine of one's own, before there are any keys.

use std::{
    net::IpAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName, header, uri::Authority};
use safelight_common::store::DynStore;

use crate::problem::Problem;

/// How long it is believed that there are no keys: the first one shuts the door of every node that fast.
const BELIEVED_FOR: Duration = Duration::from_millis(500);

/// What proxies add. Whoever comes through one may come from anywhere.
const FORWARDED: [HeaderName; 3] = [
    header::FORWARDED,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
];

/// The way in without a key. Once there was a key it is shut for good.
pub struct Door {
    is_local: bool,
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy)]
enum Seen {
    Nothing,
    NoKeys(Instant),
    Keys,
}

impl Door {
    /// That of a server which is `local`: for its own machine alone.
    pub fn new(is_local: bool) -> Self {
        Self { is_local, seen: Mutex::new(Seen::Nothing) }
    }

    /// Whether a request without a key may come in: it is for this machine by name, has not come through a
    /// proxy, and there were never any keys.
    ///
    /// The name matters because a page of somebody's can have its own name resolve to this machine (DNS
    /// rebinding), and a proxy on this machine passes on what it was asked for.
    pub async fn is_open(
        &self,
        store: &DynStore,
        headers: &HeaderMap,
        authority: Option<&str>,
    ) -> Result<bool, Problem> {
        if !self.is_local || !is_from_here(headers, authority) {
            return Ok(false);
        }
        match self.seen() {
            Seen::Keys => return Ok(false),
            Seen::NoKeys(at) if at.elapsed() < BELIEVED_FOR => return Ok(true),
            Seen::NoKeys(_) | Seen::Nothing => {}
        }
        // From before the question, so that the answer is never believed for longer.
        let asked = Instant::now();
        let seen = if store.has_api_keys().await? { Seen::Keys } else { Seen::NoKeys(asked) };
        *self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = seen;
        Ok(matches!(seen, Seen::NoKeys(_)))
    }

    fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn is_from_here(headers: &HeaderMap, authority: Option<&str>) -> bool {
    if FORWARDED.iter().any(|name| headers.contains_key(name)) {
        return false;
    }
    let host = headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    [authority, host].iter().flatten().all(|name| is_this_machine(name))
}

/// Whether a host with or without port is a name of this machine that nobody else can give it.
fn is_this_machine(name: &str) -> bool {
    let Ok(authority) = name.parse::<Authority>() else { return false };
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
    fn only_requests_to_this_machine_by_name_are_from_here() {
        let with_host = |host: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            headers
        };
        for host in ["127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:8080", "127.9.9.9"] {
            assert!(is_from_here(&with_host(host), None), "{host}");
        }
        for host in ["example.org", "127.0.0.1.example.org", "192.168.0.1:80", "", "a b"] {
            assert!(!is_from_here(&with_host(host), None), "{host}");
        }
        assert!(is_from_here(&HeaderMap::new(), Some("localhost:8080")));
        // No browser and no proxy leaves the name out.
        assert!(is_from_here(&HeaderMap::new(), None));
        assert!(!is_from_here(&with_host("localhost"), Some("example.org")));
        for name in FORWARDED {
            let mut headers = with_host("localhost");
            headers.insert(name, HeaderValue::from_static("127.0.0.1"));
            assert!(!is_from_here(&headers, None));
        }
    }
}
