//! What the head of a request must be, whatever it asks for. The HTTP library leaves these rules to its user.

use std::net::Ipv6Addr;

use axum::http::{
    HeaderMap, HeaderValue, Request, Version, header,
    uri::{Authority, Scheme},
};

use super::problem::{Problem, ProblemCode};

/// Why a request is not answered by a route: two readers of its head could take it for different requests.
pub fn rejection<B>(request: &Request<B>) -> Option<Problem> {
    let (uri, headers, version) = (request.uri(), request.headers(), request.version());
    let foreign = |scheme: &Scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS;
    if uri.scheme().is_some_and(foreign) {
        return Some(invalid("The target's scheme is neither `http` nor `https`."));
    }
    if has_space_around_a_value(headers) {
        return Some(invalid("A header field's value begins or ends with white space."));
    }
    bad_host(uri.authority(), headers, version).or_else(|| unknown_coding(headers))
}

/// The host must be named once, by a valid name (RFC 9112, section 3.2; RFC 9113, section 8.3.1). Only
/// HTTP/1.0 knows requests without one.
fn bad_host(target: Option<&Authority>, headers: &HeaderMap, version: Version) -> Option<Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Some(invalid("There is more than one `Host`."));
    }
    let is_broken = |host: &HeaderValue| !host.to_str().is_ok_and(is_host);
    if host.is_some_and(is_broken) || target.is_some_and(|target| !is_host(target.as_str())) {
        return Some(invalid("The host is not a valid name or address."));
    }
    match (version, target, host) {
        (Version::HTTP_2, Some(target), Some(host)) => {
            let differs = !target.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes());
            differs.then(|| invalid("`Host` and `:authority` differ."))
        }
        (Version::HTTP_2, None, None) | (Version::HTTP_11, _, None) => {
            Some(invalid("The request names no `Host`."))
        }
        _ => None,
    }
}

/// Whether `text` is a host with or without port, as URLs of servers have it. Narrower than RFC 3986, which
/// also allows user names, percent-encoding and punctuation.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address.parse::<Ipv6Addr>().is_ok(), ""),
        Some((address, rest)) => match rest.strip_prefix(':') {
            Some(port) => (address.parse::<Ipv6Addr>().is_ok(), port),
            None => (false, ""),
        },
        None => {
            let (name, port) = text.split_once(':').unwrap_or((text, ""));
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
            (!name.is_empty() && name.bytes().all(plain), port)
        }
    };
    // `u16` also reads a sign.
    host && port.bytes().all(|byte| byte.is_ascii_digit())
        && (port.is_empty() || port.parse::<u16>().is_ok())
}

/// HTTP/1 removes such white space; in HTTP/2 it makes a request malformed (RFC 9113, section 8.2.1).
fn has_space_around_a_value(headers: &HeaderMap) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    headers.values().map(HeaderValue::as_bytes).any(|v| is_space(v.first()) || is_space(v.last()))
}

/// The body is decoded from chunks and nothing else (RFC 9112, section 6.1). Another coding beside that would
/// be taken for content.
fn unknown_coding(headers: &HeaderMap) -> Option<Problem> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let first = codings.next()?;
    let only_chunked =
        first.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none();
    (!only_chunked).then(|| {
        let detail = "The only transfer coding of a request is `chunked`, once.";
        Problem::new(ProblemCode::UnsupportedTransferCoding, detail)
            .hint("send the body as it is")
            // Where the next request would begin depends on the coding.
            .header(header::CONNECTION, HeaderValue::from_static("close"))
    })
}

fn invalid(detail: &str) -> Problem {
    Problem::new(ProblemCode::InvalidRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_is_a_name_or_an_address_with_an_optional_port() {
        for host in [
            "a",
            "localhost:8080",
            "img.example.org",
            "api_1:80",
            "127.0.0.1",
            "[::1]",
            "[::1]:80",
            "a:",
        ] {
            assert!(is_host(host), "{host}");
        }
        for host in [
            "", ":80", "a b", "a/b", "a@b", "a/b@c", "a,b", "a:b", "a:+8", "a:65536", "a:8:0",
            "[::1", "::1", "[a]", "[::1]x", "[::1]:x", "a\u{e9}", "a%62", "http://a", "a?b", "a#b",
            "a\\b",
        ] {
            assert!(!is_host(host), "{host}");
        }
    }

    fn code(version: Version, uri: &str, fields: &[(&str, &str)]) -> Option<ProblemCode> {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        rejection(&request.body(()).expect("a request")).map(|problem| problem.code())
    }

    #[test]
    fn host_is_named_once_in_every_version() {
        let invalid = Some(ProblemCode::InvalidRequest);
        let (one, other) = (("host", "a"), ("host", "b"));
        for (version, uri, fields, expected) in [
            (Version::HTTP_11, "/", &[one][..], None),
            (Version::HTTP_11, "/", &[], invalid),
            (Version::HTTP_11, "/", &[one, one], invalid),
            (Version::HTTP_11, "/", &[one, other], invalid),
            (Version::HTTP_11, "/", &[("host", "")], invalid),
            (Version::HTTP_11, "http://b/", &[one], None),
            (Version::HTTP_11, "http://b/", &[], invalid),
            (Version::HTTP_11, "http://u@b/", &[one], invalid),
            (Version::HTTP_11, "ftp://a/", &[one], invalid),
            (Version::HTTP_10, "/", &[], None),
            (Version::HTTP_10, "/", &[one, other], invalid),
            (Version::HTTP_2, "http://a/", &[], None),
            (Version::HTTP_2, "http://a/", &[one], None),
            (Version::HTTP_2, "http://a/", &[other], invalid),
            (Version::HTTP_2, "/", &[one], None),
            (Version::HTTP_2, "/", &[], invalid),
            (Version::HTTP_2, "ftp://a/", &[], invalid),
        ] {
            assert_eq!(code(version, uri, fields), expected, "{version:?} {uri} {fields:?}");
        }
    }

    #[test]
    fn values_with_space_around_and_other_codings_are_rejected() {
        let with = |name, value| code(Version::HTTP_11, "/", &[("host", "a"), (name, value)]);
        for value in [" x", "x ", "\tx", "x\t", " "] {
            assert_eq!(with("x-field", value), Some(ProblemCode::InvalidRequest), "{value:?}");
        }
        assert_eq!(with("x-field", "a b"), None);
        assert_eq!(with("x-field", ""), None);
        assert_eq!(with("transfer-encoding", "Chunked"), None);
        for value in ["gzip, chunked", "gzip", "chunked, chunked", "identity", "chunked;q=1", ""] {
            let coding = with("transfer-encoding", value);
            assert_eq!(coding, Some(ProblemCode::UnsupportedTransferCoding), "{value}");
        }
    }
}
