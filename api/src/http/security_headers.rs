//! Headers that keep browsers from doing what nobody asked for.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// Who may load an answer into a page of another origin.
pub const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-resource-policy");

/// A picture is shown, and whatever else might be in it does nothing.
pub const PICTURE_POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; sandbox");

/// The page may load nothing from elsewhere. Its styles are partly inline.
pub const DOCS_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:; \
     style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// Documents are read by programs; opened in a browser they do nothing.
const DOCUMENT_POLICY: HeaderValue =
    HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'; sandbox");

/// A year. Without subdomains: what else runs under the domain is not ours to say.
const ONLY_BY_TLS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// What every answer says, whoever made it.
#[derive(Debug, Clone, Copy)]
pub struct Guard {
    /// Clients come by TLS.
    tls: bool,
}

impl Guard {
    /// For a node whose clients come by TLS, or not.
    pub fn new(tls: bool) -> Self {
        Self { tls }
    }

    /// Adds them. What an answer says of itself stays.
    pub fn complete(self, headers: &mut HeaderMap) {
        // A picture has all of them from the start.
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

fn of_all(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
}

/// What is said of a picture: pages of any origin may show it, and it is never more than a picture.
/// Also in a 304, which a cache puts in the place of what it has.
pub fn of_a_picture(headers: &mut HeaderMap) {
    of_all(headers);
    headers.insert(header::CONTENT_SECURITY_POLICY, PICTURE_POLICY);
    headers.insert(CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
}
