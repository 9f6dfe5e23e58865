//! Validators and the requests that depend on them (RFC 9110, sections 8.8 and 13).

use std::time::SystemTime;

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::{DateTime, SubsecRound, Utc};
use safelight_domain::ContentHash;
use serde::Serialize;

use super::problem::Problem;

/// A strong entity tag, quotes included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ETag(String);

impl ETag {
    /// The tag of content with this hash.
    pub fn of(hash: ContentHash) -> Self {
        Self(format!("\"{hash}\""))
    }

    pub fn value(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }

    /// Whether `If-None-Match` names this tag, by the weak comparison that it asks for. A header
    /// that cannot be read names nothing: the client then gets the content.
    pub fn is_known_to(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|list| list.trim() == "*" || tags(list).any(|(_, tag)| tag == self.0))
    }

    /// Whether `If-Match` names this tag, by the strong comparison that it asks for.
    fn is_expected_by(&self, headers: &HeaderMap) -> bool {
        headers.get_all(header::IF_MATCH).iter().filter_map(|value| value.to_str().ok()).any(
            |list| list.trim() == "*" || tags(list).any(|tag| tag == (Strength::Strong, &self.0)),
        )
    }
}

/// What identifies a representation to a client.
#[derive(Debug, Clone)]
pub struct Validators {
    /// Names the bytes.
    pub tag: ETag,
    /// When they were made.
    pub modified: DateTime<Utc>,
}

impl Validators {
    /// The value of `Last-Modified`: whole seconds.
    pub fn last_modified(&self) -> HeaderValue {
        let text = httpdate::fmt_http_date(self.modified.into());
        HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// Whether it is what the client expects: as `If-Match` says, and only where that is absent
    /// `If-Unmodified-Since`.
    pub fn are_expected_by(&self, headers: &HeaderMap) -> bool {
        if headers.contains_key(header::IF_MATCH) {
            return self.tag.is_expected_by(headers);
        }
        let since = headers.get(header::IF_UNMODIFIED_SINCE).and_then(date);
        since.is_none_or(|since| self.modified.trunc_subsecs(0) <= since)
    }

    /// Whether the client has it: `If-None-Match`, and only where that is absent
    /// `If-Modified-Since`.
    pub fn is_known_to(&self, headers: &HeaderMap) -> bool {
        if headers.contains_key(header::IF_NONE_MATCH) {
            return self.tag.is_known_to(headers);
        }
        let since = headers.get(header::IF_MODIFIED_SINCE).and_then(date);
        since.is_some_and(|since| self.modified.trunc_subsecs(0) <= since)
    }

    /// Whether a range may be sent: there is no `If-Range`, or it names this representation, by strong comparison.
    pub fn allows_range(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::IF_RANGE) else { return true };
        value.to_str().is_ok_and(|tag| tag.trim() == self.tag.0)
            || date(value).is_some_and(|since| self.modified.trunc_subsecs(0) == since)
    }
}

/// A document as the response to a conditional GET: 200 with its tag, or 304.
pub fn conditional(document: &impl Serialize, request: &HeaderMap) -> Result<Response, Problem> {
    let body = serde_json::to_vec(document).map_err(|error| Problem::internal(&error))?;
    let tag = ETag::of(ContentHash::of(&body));
    let mut response = if tag.is_known_to(request) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let json = HeaderValue::from_static("application/json");
        ([(header::CONTENT_TYPE, json)], Bytes::from(body)).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.extend(tag.value().map(|tag| (header::ETAG, tag)));
    Ok(response)
}

/// An HTTP date; `None` if it cannot be read.
fn date(value: &HeaderValue) -> Option<DateTime<Utc>> {
    let time: SystemTime = httpdate::parse_http_date(value.to_str().ok()?).ok()?;
    Some(time.into())
}

/// Whether equal tags mean equal bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strength {
    /// They do.
    Strong,
    /// Only for equivalent bytes: `W/`.
    Weak,
}

/// The tags of a list, without `W/`. A tag may hold commas, so quotes decide where one ends.
fn tags(list: &str) -> impl Iterator<Item = (Strength, &str)> {
    let mut rest = list;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (strength, tagged) = match rest.strip_prefix("W/") {
            Some(tagged) => (Strength::Weak, tagged),
            None => (Strength::Strong, rest),
        };
        let end = tagged.strip_prefix('"')?.find('"')? + 2;
        let (tag, after) = tagged.split_at(end);
        rest = after;
        Some((strength, tag))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_count_if_there_is_no_tag() {
        let modified = "2026-11-23T10:00:00.75Z".parse().expect("a time");
        let validators = Validators { tag: ETag("\"a\"".to_owned()), modified };
        assert_eq!(validators.last_modified(), "Mon, 23 Nov 2026 10:00:00 GMT");
        let with = |pairs: &[(header::HeaderName, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(name, v)| (name.clone(), HeaderValue::from_static(v))).collect()
        };
        let (since, same) = (header::IF_MODIFIED_SINCE, "Mon, 23 Nov 2026 10:00:00 GMT");
        let before = "Mon, 23 Nov 2026 09:59:59 GMT";
        assert!(validators.is_known_to(&with(&[(since.clone(), same)])));
        assert!(!validators.is_known_to(&with(&[(since.clone(), before)])));
        assert!(!validators.is_known_to(&with(&[(since.clone(), "yesterday")])));
        let both = with(&[(since, same), (header::IF_NONE_MATCH, "\"b\"")]);
        assert!(!validators.is_known_to(&both), "the tag takes precedence");
        let expects =
            |name: header::HeaderName, value| validators.are_expected_by(&with(&[(name, value)]));
        let (matches, unmodified) = (header::IF_MATCH, header::IF_UNMODIFIED_SINCE);
        for right in ["\"a\"", "\"b\", \"a\"", "*"] {
            assert!(expects(matches.clone(), right), "{right}");
        }
        for wrong in ["\"b\"", "W/\"a\"", "a", ""] {
            assert!(!expects(matches.clone(), wrong), "{wrong}");
        }
        assert!(expects(unmodified.clone(), same) && expects(unmodified.clone(), "yesterday"));
        assert!(!expects(unmodified.clone(), before));
        let both = with(&[(unmodified, before), (matches, "\"a\"")]);
        assert!(validators.are_expected_by(&both), "the tag takes precedence");
        let allows = |value| validators.allows_range(&with(&[(header::IF_RANGE, value)]));
        assert!(validators.allows_range(&HeaderMap::new()));
        assert!(allows("\"a\"") && allows(same));
        assert!(!allows("W/\"a\"") && !allows("\"b\"") && !allows(before) && !allows("x"));
    }

    #[test]
    fn lists_weak_tags_and_the_star_match() {
        let tag = ETag("\"a,b\"".to_owned());
        let cases = [
            ("\"a,b\"", true),
            ("W/\"a,b\"", true),
            ("\"x\", W/\"a,b\" ,\"y\"", true),
            (" * ", true),
            ("\"a\", \"b\"", false),
            ("a,b", false),
            ("\"unclosed", false),
            ("", false),
        ];
        for (value, known) in cases {
            let headers =
                HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static(value))]);
            assert_eq!(tag.is_known_to(&headers), known, "{value}");
        }
        let mut two = HeaderMap::new();
        two.append(header::IF_NONE_MATCH, HeaderValue::from_static("\"x\""));
        two.append(header::IF_NONE_MATCH, HeaderValue::from_static("\"a,b\""));
        assert!(tag.is_known_to(&two));
    }
}
