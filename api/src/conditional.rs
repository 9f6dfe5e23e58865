//! Entity tags and `If-None-Match` (RFC 9110, sections 8.8.3 and 13.1.2).

use axum::http::{HeaderMap, HeaderValue, header};
use safelight_common::domain::ContentHash;

/// A strong entity tag, quotes included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ETag(String);

impl ETag {
    /// The tag of content with this hash.
    pub fn of(hash: ContentHash) -> Self {
        Self(format!("\"{hash}\""))
    }

    /// As a header's value.
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
            .any(|list| list.trim() == "*" || tags(list).any(|tag| tag == self.0))
    }
}

/// The tags of a list, without `W/`. A tag may hold commas, so quotes decide where one ends.
fn tags(list: &str) -> impl Iterator<Item = &str> {
    let mut rest = list;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        rest = rest.strip_prefix("W/").unwrap_or(rest);
        let end = rest.strip_prefix('"')?.find('"')? + 2;
        let (tag, after) = rest.split_at(end);
        rest = after;
        Some(tag)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
