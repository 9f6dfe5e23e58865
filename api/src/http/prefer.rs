//! `Prefer: wait=N` (RFC 7240).

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// The longest wait that a client may ask for, in seconds.
const MAX_WAIT_SECONDS: u64 = 60;

/// The header of a request.
pub const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The header of a response that honored a preference.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// How long a client is willing to wait for a final answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait(u64);

impl Wait {
    /// The wait that the request asks for, if any, but no more than the server grants. A preference that is
    /// unknown, or that cannot be read, is ignored and never an error (RFC 7240, section 2); of several waits
    /// the first counts.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let lists = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
        let mut waits = lists.flat_map(preferences).filter_map(|preference| {
            let token = outside_quotes(preference, ';').next().unwrap_or_default();
            let (name, value) = token.split_once('=').unwrap_or((token, ""));
            name.trim().eq_ignore_ascii_case("wait").then_some(value.trim())
        });
        let seconds = digits(waits.next()?)?;
        // More digits than a number has are more seconds than the server grants.
        Some(Self(
            seconds.parse().map_or(MAX_WAIT_SECONDS, |wanted: u64| wanted.min(MAX_WAIT_SECONDS)),
        ))
    }

    /// Seconds as a query parameter gives them; otherwise what is wrong with them.
    pub fn parse(text: &str) -> Result<Self, String> {
        match digits(text).and_then(|digits| digits.parse().ok()) {
            Some(seconds @ 0..=MAX_WAIT_SECONDS) => Ok(Self(seconds)),
            _ => Err(format!("wait must be whole seconds from 0 to {MAX_WAIT_SECONDS}")),
        }
    }

    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }

    /// The value of `Preference-Applied`.
    pub fn applied(self) -> Option<HeaderValue> {
        HeaderValue::from_str(&format!("wait={}", self.0)).ok()
    }
}

/// The digits of a number, with or without quotes; `None` if anything else is there.
fn digits(text: &str) -> Option<&str> {
    let digits = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
    let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    all.then_some(digits)
}

fn preferences(list: &str) -> impl Iterator<Item = &str> {
    outside_quotes(list, ',')
}

/// Splits at a separator, except within a quoted string (RFC 9110, section 5.6.4).
fn outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |character| {
        if escaped {
            escaped = false;
            return false;
        }
        match character {
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        character == separator && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(value: &'static str) -> Option<Wait> {
        Wait::from_headers(&HeaderMap::from_iter([(PREFER, HeaderValue::from_static(value))]))
    }

    #[test]
    fn what_cannot_be_honored_is_ignored() {
        let cases = [
            ("wait=10", Some(10)),
            ("respond-async, Wait = \"7\"; x=y", Some(7)),
            ("wait=0, wait=9", Some(0)),
            ("wait=61", Some(60)),
            ("wait=99999999999999999999999", Some(60)),
            ("note=\"a, wait=5\", wait=6", Some(6)),
            ("note=\"a\\\", wait=5\"", None),
            ("wait=x, wait=9", None),
            ("return=minimal", None),
            ("", None),
        ];
        for (value, seconds) in cases {
            assert_eq!(wait(value), seconds.map(Wait), "{value}");
        }
        for value in ["wait", "wait=", "wait=-1", "wait=+1", "wait=1.5", "wait=x"] {
            assert_eq!(wait(value), None, "{value}");
            assert!(Wait::parse(value.trim_start_matches("wait=")).is_err(), "{value}");
        }
        assert!(Wait::parse("61").is_err(), "a parameter is never changed silently");
    }
}
