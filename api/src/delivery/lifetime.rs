//! How long caches may keep an image.

use axum::http::HeaderValue;

use crate::presets::VERSION;

/// Private bytes: only the client itself may keep them, and it must ask again before it shows them, since a
/// key may be revoked and a signature expire.
const PRIVATE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// Bytes that never change under their URL.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// The rendition as it is now. It is another one as soon as its preset changes.
const CURRENT: HeaderValue = HeaderValue::from_static("public, max-age=60");

/// Other bytes than those of the version that the URL names. Also short, since anybody can invent versions, and
/// a shared cache would keep a copy for each.
const OTHER_VERSION: HeaderValue = HeaderValue::from_static("public, no-cache");

/// How long caches may keep a representation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifetime {
    /// Not without asking.
    Private,
    /// For ever: no id is used twice, and an original does not change.
    Unlimited,
    /// For ever under a URL that names this version, and briefly under others.
    OfVersion(Box<str>),
}

impl Lifetime {
    /// `Cache-Control` of a response to a request with this query.
    pub fn cache_control(&self, query: Option<&str>) -> HeaderValue {
        let version = match self {
            Self::Private => return PRIVATE,
            Self::Unlimited => return IMMUTABLE,
            Self::OfVersion(version) => version,
        };
        let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let mut named = pairs.filter(|(name, _)| *name == VERSION).map(|(_, value)| value);
        match (named.next(), named.next()) {
            (None, _) => CURRENT,
            (Some(named), None) if *named == **version => IMMUTABLE,
            _ => OTHER_VERSION,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rendition_is_immutable_only_under_its_own_version() {
        let lifetime = Lifetime::OfVersion("abc".into());
        for (query, expected) in [
            (Some("v=abc"), IMMUTABLE),
            (Some("x=1&v=abc&wait=3"), IMMUTABLE),
            (None, CURRENT),
            (Some(""), CURRENT),
            (Some("wait=3"), CURRENT),
            (Some("v=xyz"), OTHER_VERSION),
            (Some("v="), OTHER_VERSION),
            (Some("v=abc&v=abc"), OTHER_VERSION),
        ] {
            assert_eq!(lifetime.cache_control(query), expected, "{query:?}");
            assert_eq!(Lifetime::Private.cache_control(query), PRIVATE);
            assert_eq!(Lifetime::Unlimited.cache_control(query), IMMUTABLE);
        }
    }
}
