//! Headers that restrict what browsers and caches do with a response.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// Which pages may load a response.
pub const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-resource-policy");

/// An image is shown, and active content in it is disabled.
pub const IMAGE_POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; sandbox");

/// The page may load nothing from elsewhere. Its styles are partly inline.
pub const DOCS_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; \
     style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// Documents are read by programs; opened in a browser they do nothing.
const DOCUMENT_POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox");

/// Without a word on it, caches choose for themselves how long a response is good (RFC 9111, section 4.2.2).
const NOT_CACHED: HeaderValue = HeaderValue::from_static("private, no-store");

/// A year. Without subdomains, which may not be Safelight's.
const ONLY_BY_TLS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// The headers of every response.
#[derive(Debug, Clone, Copy)]
pub struct SecurityHeaders {
    /// Clients connect by TLS.
    tls: bool,
}

impl SecurityHeaders {
    /// For a node whose clients connect by `tls`, or not.
    pub fn new(tls: bool) -> Self {
        Self { tls }
    }

    /// Adds the headers that the response does not have.
    pub fn complete(self, headers: &mut HeaderMap) {
        // What may be cached, and for how long, is said where it is made.
        headers.entry(header::CACHE_CONTROL).or_insert(NOT_CACHED);
        // An image has all of them from the start.
        if !headers.contains_key(header::X_CONTENT_TYPE_OPTIONS) {
            of_all(headers);
            headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(DOCUMENT_POLICY);
            headers
                .entry(CROSS_ORIGIN_RESOURCE_POLICY)
                .or_insert(HeaderValue::from_static("same-origin"));
        }
        if self.tls {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, ONLY_BY_TLS);
        }
    }
}

/// Whether shared caches may keep the response and give it to other clients.
pub fn is_public(headers: &HeaderMap) -> bool {
    headers.get(header::CACHE_CONTROL).is_some_and(|value| value.as_bytes().starts_with(b"public"))
}

fn of_all(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}

/// The headers of an image: pages of any origin may show it, and it is never more than an image. Also in a 304,
/// whose headers replace those that a cache has.
pub fn of_an_image(headers: &mut HeaderMap) {
    of_all(headers);
    headers.insert(header::CONTENT_SECURITY_POLICY, IMAGE_POLICY);
    headers.insert(CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_that_says_nothing_is_not_cached() {
        let mut headers = HeaderMap::new();
        SecurityHeaders::new(false).complete(&mut headers);
        assert_eq!(headers[header::CACHE_CONTROL], "private, no-store");
        let public = HeaderValue::from_static("public, max-age=60");
        headers.insert(header::CACHE_CONTROL, public.clone());
        SecurityHeaders::new(false).complete(&mut headers);
        assert_eq!(headers[header::CACHE_CONTROL], public);
    }
}
