//! `Prefer: wait=N` (RFC 7240).

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::problem::{Problem, ProblemCode};

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
    /// The wait that the request asks for, if any. Unknown preferences are ignored, as the RFC requires; of
    /// several waits the first counts.
    pub fn from_headers(headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        for value in headers.get_all(PREFER) {
            let Ok(list) = value.to_str() else {
                return Err(invalid("holds other than visible ASCII characters"));
            };
            for preference in list.split(',') {
                let token = preference.split(';').next().unwrap_or_default();
                let (name, value) = token.split_once('=').unwrap_or((token, ""));
                if name.trim().eq_ignore_ascii_case("wait") {
                    return parse_seconds(value.trim()).map(Some).map_err(|why| invalid(&why));
                }
            }
        }
        Ok(None)
    }

    /// Seconds as a query parameter gives them; otherwise what is wrong with them.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse_seconds(text)
    }

    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }

    /// The value of `Preference-Applied`.
    pub fn applied(self) -> Option<HeaderValue> {
        HeaderValue::from_str(&format!("wait={}", self.0)).ok()
    }
}

fn parse_seconds(text: &str) -> Result<Wait, String> {
    let digits = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
    let digits_only = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse() {
        Ok(seconds @ 0..=MAX_WAIT_SECONDS) if digits_only => Ok(Wait(seconds)),
        _ => Err(format!("wait must be whole seconds from 0 to {MAX_WAIT_SECONDS}")),
    }
}

fn invalid(why: &str) -> Problem {
    Problem::new(ProblemCode::InvalidHeader, format!("Header `prefer`: {why}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(value: &'static str) -> Result<Option<Wait>, Problem> {
        Wait::from_headers(&HeaderMap::from_iter([(PREFER, HeaderValue::from_static(value))]))
    }

    #[test]
    fn prefer_header_yields_the_wait_only() {
        let cases = [
            ("wait=10", Some(10)),
            ("respond-async, Wait = \"7\"; x=y", Some(7)),
            ("wait=0, wait=9", Some(0)),
            ("return=minimal", None),
        ];
        for (value, seconds) in cases {
            assert_eq!(wait(value).expect(value), seconds.map(Wait), "{value}");
        }
        for value in ["wait", "wait=", "wait=61", "wait=-1", "wait=+1", "wait=1.5", "wait=x"] {
            assert!(wait(value).is_err(), "{value}");
        }
    }
}
