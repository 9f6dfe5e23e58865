//! `Content-Digest` (RFC 9530): a structured-field dictionary of byte sequences.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::{Engine, engine::general_purpose::STANDARD};
use safelight_domain::ContentHash;

use crate::http::problem::{Problem, ProblemCode};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const WANT_CONTENT_DIGEST: HeaderName = HeaderName::from_static("want-content-digest");

/// The SHA-256 that the client announces; `None` if it sends no digest.
pub fn from_headers(headers: &HeaderMap) -> Result<Option<ContentHash>, Problem> {
    let mut lines = Vec::new();
    for value in headers.get_all(CONTENT_DIGEST) {
        lines.push(value.to_str().map_err(|_| malformed())?);
    }
    if lines.is_empty() {
        return Ok(None);
    }
    let members = dictionary(&lines.join(", ")).ok_or_else(malformed)?;
    // Of several members with one name the last counts (RFC 9651, section 3.2).
    let Some((_, digest)) = members.into_iter().rfind(|(name, _)| name == "sha-256") else {
        return Err(Problem::new(
            ProblemCode::UnsupportedDigest,
            "`Content-Digest` names no supported algorithm.",
        )
        .hint("send sha-256")
        .header(WANT_CONTENT_DIGEST, HeaderValue::from_static("sha-256=1")));
    };
    ContentHash::try_from(digest.as_slice()).map(Some).map_err(|_| malformed())
}

/// The content is not what the header says.
pub fn mismatch(actual: ContentHash) -> Problem {
    let actual = STANDARD.encode(actual.as_bytes());
    Problem::new(
        ProblemCode::DigestMismatch,
        format!("The content that arrived has sha-256=:{actual}:. Nothing was kept."),
    )
}

fn malformed() -> Problem {
    Problem::new(
        ProblemCode::InvalidDigest,
        "`Content-Digest` must look like `sha-256=:BASE64:` (RFC 9530).",
    )
}

/// The members of a dictionary whose values are all byte sequences; parameters are skipped.
fn dictionary(text: &str) -> Option<Vec<(String, Vec<u8>)>> {
    let mut members = Vec::new();
    for member in text.split(',') {
        let member = member.trim_matches([' ', '\t']);
        let (key, value) = member.split_once('=')?;
        let mut key_bytes = key.bytes();
        let first = key_bytes.next()?;
        let starts_well = first.is_ascii_lowercase() || first == b'*';
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.*".contains(&b);
        if !starts_well || !key_bytes.all(plain) {
            return None;
        }
        let (encoded, parameters) = value.strip_prefix(':')?.split_once(':')?;
        if !parameters.is_empty() && !parameters.trim_start_matches(' ').starts_with(';') {
            return None;
        }
        members.push((key.to_owned(), STANDARD.decode(encoded).ok()?));
    }
    Some(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&'static str]) -> Result<Option<ContentHash>, Problem> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CONTENT_DIGEST, HeaderValue::from_static(line));
        }
        from_headers(&headers)
    }

    #[test]
    fn sha_256_is_found_among_other_digests() {
        const ABC: &str = "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:";
        let abc = Some(ContentHash::of(b"abc"));
        assert_eq!(read(&[]).expect("none"), None);
        assert_eq!(read(&[ABC]).expect("one"), abc);
        assert_eq!(read(&["sha-512=:AAAA:", ABC]).expect("two lines"), abc);
        assert_eq!(
            read(&["unixsum=:AA==:;a=1,\tsha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:"])
                .expect("a list"),
            abc
        );
    }

    #[test]
    fn malformed_and_unsupported_digests_have_their_own_problems() {
        let malformed = [
            "",
            "sha-256",
            "sha-256=",
            "sha-256=abc",
            "sha-256=:!!!:",
            "sha-256=:AAAA:",
            "sha-256=:AAAA:x",
            "SHA-256=:AAAA:",
            "sha-256=:AAAA:,",
        ];
        for value in malformed {
            let problem = read(&[value]).expect_err(value);
            assert_eq!(problem.code(), ProblemCode::InvalidDigest, "{value}");
        }
        let problem = read(&["md5=:AAAA:"]).expect_err("md5");
        assert_eq!(problem.code(), ProblemCode::UnsupportedDigest);
    }
}
