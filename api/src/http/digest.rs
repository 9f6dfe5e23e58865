//! `Content-Digest` and `Repr-Digest` (RFC 9530): structured-field dictionaries of byte sequences.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::{Engine, engine::general_purpose::STANDARD};
use safelight_domain::ContentHash;

use super::problem::{Problem, ProblemCode};

/// The digest of what is served, whole.
pub const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// The value of [`REPR_DIGEST`] for a representation with this hash. It is sent whether or not a client wants it
/// (`Want-Repr-Digest`): so caches need not tell clients apart.
pub fn of(hash: ContentHash) -> Option<HeaderValue> {
    let encoded = STANDARD.encode(hash.as_bytes());
    HeaderValue::try_from(format!("sha-256=:{encoded}:")).ok()
}

/// A field with a digest of a request, and the one that asks a client for it. An upload has no content coding
/// and no range, so its content and its representation are the same bytes.
struct DigestField {
    name: HeaderName,
    shown: &'static str,
    wanted: HeaderName,
}

static FIELDS: [DigestField; 2] = [
    DigestField {
        name: HeaderName::from_static("content-digest"),
        shown: "Content-Digest",
        wanted: HeaderName::from_static("want-content-digest"),
    },
    DigestField {
        name: REPR_DIGEST,
        shown: "Repr-Digest",
        wanted: HeaderName::from_static("want-repr-digest"),
    },
];

/// Whether the client announces a digest, valid or not.
pub fn is_announced(headers: &HeaderMap) -> bool {
    FIELDS.iter().any(|field| headers.contains_key(&field.name))
}

/// The SHA-256 hashes that the client announces, at most one for each field.
pub fn from_headers(headers: &HeaderMap) -> Result<Vec<ContentHash>, Problem> {
    let mut announced = Vec::new();
    for field in &FIELDS {
        announced.extend(field.read(headers)?);
    }
    Ok(announced)
}

impl DigestField {
    /// The SHA-256 that the client announces; `None` if it does not send this field.
    fn read(&self, headers: &HeaderMap) -> Result<Option<ContentHash>, Problem> {
        let mut lines = Vec::new();
        for value in headers.get_all(&self.name) {
            lines.push(value.to_str().map_err(|_| self.malformed())?);
        }
        if lines.is_empty() {
            return Ok(None);
        }
        let members = dictionary(&lines.join(", ")).ok_or_else(|| self.malformed())?;
        // Of several members with one name the last counts (RFC 9651, section 3.2).
        let Some((_, digest)) = members.into_iter().rfind(|(name, _)| name == "sha-256") else {
            return Err(Problem::new(
                ProblemCode::UnsupportedDigest,
                format!("`{}` names no supported algorithm.", self.shown),
            )
            .hint("send sha-256")
            .header(self.wanted.clone(), HeaderValue::from_static("sha-256=1")));
        };
        ContentHash::try_from(digest.as_slice()).map(Some).map_err(|_| self.malformed())
    }

    fn malformed(&self) -> Problem {
        Problem::new(
            ProblemCode::InvalidDigest,
            format!("`{}` must look like `sha-256=:BASE64:` (RFC 9530).", self.shown),
        )
    }
}

/// The content is not what the header says.
pub fn mismatch(actual: ContentHash) -> Problem {
    let actual = STANDARD.encode(actual.as_bytes());
    Problem::new(
        ProblemCode::DigestMismatch,
        format!("The content that arrived has sha-256=:{actual}:. Nothing was kept."),
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
        let mut results = FIELDS.iter().map(|field| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(field.name.clone(), HeaderValue::from_static(line));
            }
            assert_eq!(is_announced(&headers), !lines.is_empty());
            from_headers(&headers).map(|hashes| hashes.first().copied())
        });
        let (content, repr) = (results.next().expect("two"), results.next().expect("two"));
        let code = |result: &Result<_, Problem>| result.as_ref().map_err(Problem::code).copied();
        assert_eq!(code(&content), code(&repr), "both fields have the same syntax");
        content
    }

    #[test]
    fn both_fields_count() {
        let digest = |bytes: &[u8]| {
            let text = format!("sha-256=:{}:", STANDARD.encode(ContentHash::of(bytes).as_bytes()));
            HeaderValue::try_from(text).expect("ASCII")
        };
        let [content, repr] = &FIELDS;
        let headers = HeaderMap::from_iter([
            (content.name.clone(), digest(b"a")),
            (repr.name.clone(), digest(b"b")),
        ]);
        let expected = [ContentHash::of(b"a"), ContentHash::of(b"b")];
        assert_eq!(from_headers(&headers).expect("two digests"), expected);
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
