//! Files that are part of the program, served with a tag and compressed.

use std::io::Write;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use flate2::{Compression, write::GzEncoder};
use safelight_domain::ContentHash;
use tokio::sync::OnceCell;

use super::conditional::ETag;

/// Smaller files gain nothing from compression.
const MIN_COMPRESSED_BYTES: usize = 1024;

/// A file.
pub struct Asset {
    content_type: HeaderValue,
    cache_control: HeaderValue,
    plain: Encoded,
    /// Made for the first client that takes it; `None` if it would be no smaller.
    gzip: OnceCell<Option<Encoded>>,
}

/// A file in one content coding, with the tag of these bytes.
#[derive(Clone)]
struct Encoded {
    bytes: Bytes,
    tag: ETag,
}

impl Encoded {
    fn new(bytes: Bytes) -> Self {
        Self { tag: ETag::of(ContentHash::of(&bytes)), bytes }
    }
}

impl Asset {
    /// A file that caches keep as `cache_control` says.
    pub fn new(content_type: HeaderValue, cache_control: HeaderValue, bytes: Bytes) -> Self {
        let gzip = OnceCell::new();
        Self { content_type, cache_control, plain: Encoded::new(bytes), gzip }
    }

    /// The response to a GET or HEAD with these headers: 200, compressed if the client takes gzip, or 304.
    pub async fn respond(&self, request: &HeaderMap) -> Response {
        let gzip = if takes_gzip(request) { self.gzipped().await } else { None };
        let encoded = gzip.unwrap_or(&self.plain);
        let is_known = encoded.tag.is_known_to(request);
        let body = if is_known { Body::empty() } else { Body::from(encoded.bytes.clone()) };
        let mut response = Response::new(body);
        if is_known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, self.cache_control.clone());
        headers.extend(encoded.tag.value().map(|tag| (header::ETAG, tag)));
        headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        if !is_known {
            headers.insert(header::CONTENT_TYPE, self.content_type.clone());
            if gzip.is_some() {
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            }
        }
        response
    }

    async fn gzipped(&self) -> Option<&Encoded> {
        let compress = || async {
            let plain = self.plain.bytes.clone();
            // A megabyte takes a while.
            let compressed = tokio::task::spawn_blocking(move || compressed(&plain)).await;
            compressed.ok().flatten().map(Encoded::new)
        };
        self.gzip.get_or_init(compress).await.as_ref()
    }
}

fn compressed(plain: &[u8]) -> Option<Bytes> {
    if plain.len() < MIN_COMPRESSED_BYTES {
        return None;
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).ok()?;
    let compressed = encoder.finish().ok()?;
    (compressed.len() < plain.len()).then(|| compressed.into())
}

/// Whether `Accept-Encoding` names gzip, or everything, and does not exclude it (RFC 9110, section 12.5.3).
fn takes_gzip(request: &HeaderMap) -> bool {
    let lists = request.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    let (mut named, mut any) = (None, None);
    for coding in lists.flat_map(|list| list.split(',')) {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = parameters.trim().strip_prefix("q=").map_or(Some(1.0), |q| q.parse().ok());
        let is_taken = weight.is_some_and(|weight: f32| weight > 0.0);
        match name.trim().to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => named = Some(is_taken),
            "*" => any = Some(is_taken),
            _ => {}
        }
    }
    named.or(any).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(fields: &[(header::HeaderName, &str)]) -> HeaderMap {
        let value = |text: &str| HeaderValue::from_str(text).expect("a value");
        fields.iter().map(|(name, text)| (name.clone(), value(text))).collect()
    }

    #[test]
    fn gzip_is_sent_only_to_clients_that_take_it() {
        for (accepted, takes) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("*", true),
            ("br;q=1.0, *;q=0.1", true),
            ("", false),
            ("br", false),
            ("identity", false),
            ("gzip;q=0", false),
            ("gzip;q=0, *", false),
            ("*;q=0", false),
        ] {
            let headers = request(&[(header::ACCEPT_ENCODING, accepted)]);
            assert_eq!(takes_gzip(&headers), takes, "{accepted}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn each_coding_has_its_own_tag_and_is_revalidated() {
        let text = HeaderValue::from_static("text/plain");
        let cache_control = HeaderValue::from_static("public, no-cache");
        let asset = Asset::new(text, cache_control, Bytes::from(vec![b'x'; 5000]));
        let gzip = [(header::ACCEPT_ENCODING, "gzip")];
        let (plain, packed) =
            (asset.respond(&HeaderMap::new()).await, asset.respond(&request(&gzip)).await);
        assert!(!plain.headers().contains_key(header::CONTENT_ENCODING));
        assert_eq!(packed.headers()[header::CONTENT_ENCODING], "gzip");
        assert_ne!(plain.headers()[header::ETAG], packed.headers()[header::ETAG]);
        for response in [&plain, &packed] {
            assert_eq!(response.headers()[header::VARY], "accept-encoding");
        }
        let tag = packed.headers()[header::ETAG].to_str().expect("ASCII");
        let again = [(header::ACCEPT_ENCODING, "gzip"), (header::IF_NONE_MATCH, tag)];
        let known = asset.respond(&request(&again)).await;
        assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(known.headers()[header::ETAG], tag);
    }
}
