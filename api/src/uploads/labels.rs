//! What a client sends with an image's bytes: title, tags, file name, visibility.

use axum::http::{HeaderMap, header};
use percent_encoding::percent_decode_str;
use safelight_domain::{ContentHash, ContentHasher, Labels, Visibility};

use crate::http::problem::{Problem, ProblemCode};

/// What a client sends with an image's bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UploadLabels {
    /// Title, tags and file name.
    pub labels: Labels,
    /// Who may read the bytes.
    pub visibility: Option<Visibility>,
}

impl UploadLabels {
    /// Sets the title. An empty title is none.
    pub fn set_title(&mut self, text: &str) -> Result<(), Problem> {
        self.labels.set_title(text).map_err(|why| invalid("title", &why))
    }

    /// Adds tags, separated by commas.
    pub fn add_tags(&mut self, list: &str) -> Result<(), Problem> {
        for tag in list.split(',') {
            self.labels.add_tag(tag).map_err(|why| invalid("tags", &why))?;
        }
        Ok(())
    }

    /// Sets who may read the bytes.
    pub fn set_visibility(&mut self, name: &str) -> Result<(), Problem> {
        let names = |_| invalid("visibility", "must be `public` or `private`");
        self.visibility = Some(name.trim().parse().map_err(names)?);
        Ok(())
    }

    /// Sets the file's name, sanitized.
    pub fn set_filename(&mut self, name: &str) {
        self.labels.set_filename(name);
    }

    /// Identifies the payload of an upload: equal if and only if the bytes and all labels are.
    pub fn fingerprint(&self, content: ContentHash) -> ContentHash {
        let mut hasher = ContentHasher::default();
        hasher.update(content.as_bytes());
        // Each part with its length, so that no two payloads give the same bytes.
        let mut add = |part: Option<&str>| {
            let length = part.map_or(u64::MAX, |part| part.len() as u64);
            hasher.update(&length.to_be_bytes());
            hasher.update(part.unwrap_or_default().as_bytes());
        };
        add(self.labels.title.as_deref());
        add(self.labels.filename.as_deref());
        self.labels.tags.iter().for_each(|tag| add(Some(tag)));
        if let Some(visibility) = self.visibility {
            add(None);
            add(Some(visibility.as_str()));
        }
        hasher.finish()
    }
}

/// A field that is not valid.
pub fn invalid(field: &str, why: &str) -> Problem {
    Problem::new(ProblemCode::InvalidField, format!("Field `{field}`: {why}."))
}

/// The file name in `Content-Disposition` (RFC 6266; `filename*` as in RFC 8187). One that cannot
/// be read is ignored, as that RFC advises.
pub fn disposition_filename(headers: &HeaderMap) -> Option<String> {
    let value = String::from_utf8_lossy(headers.get(header::CONTENT_DISPOSITION)?.as_bytes());
    let mut plain = None;
    for (name, value) in parameters(&value) {
        match name.as_str() {
            "filename*" => {
                let encoded = value.get(..7).filter(|c| c.eq_ignore_ascii_case("utf-8''"));
                let text = encoded.and_then(|_| percent_decode_str(&value[7..]).decode_utf8().ok());
                if let Some(text) = text {
                    return Some(text.into_owned());
                }
            }
            "filename" => plain = plain.or(Some(value)),
            _ => {}
        }
    }
    plain
}

/// The parameters after the first `;`, names in lower case, values without quotes.
fn parameters(value: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let Some((_, mut rest)) = value.split_once(';') else { return found };
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', '\t', ';']).to_ascii_lowercase();
        let (value, after) = if let Some(quoted) = after.trim_start().strip_prefix('"') {
            unquoted(quoted)
        } else {
            let (token, after) = after.split_once(';').unwrap_or((after, ""));
            (token.trim().to_owned(), after)
        };
        found.push((name, value));
        rest = after;
    }
    found
}

/// The text up to the closing quote, and what follows it.
fn unquoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn content_disposition_gives_the_file_name() {
        let cases = [
            ("attachment; filename=cat.jpg", Some("cat.jpg")),
            ("form-data; name=\"a\"; filename=\"a; \\\"b\\\".jpg\"", Some("a; \"b\".jpg")),
            ("attachment; filename=x.jpg; FileName*=UTF-8''%e2%82%ac.jpg", Some("€.jpg")),
            ("attachment; filename*=UTF-8''%ff; filename=x.jpg", Some("x.jpg")),
            ("inline", None),
            ("attachment; filename", None),
        ];
        for (value, expected) in cases {
            let headers = HeaderMap::from_iter([(
                header::CONTENT_DISPOSITION,
                HeaderValue::from_static(value),
            )]);
            assert_eq!(disposition_filename(&headers).as_deref(), expected, "{value}");
        }
    }

    #[test]
    fn tags_are_split_trimmed_deduplicated_and_bounded() {
        let mut given = UploadLabels::default();
        given.add_tags("cat, dog,,cat ").expect("tags");
        given.add_tags("bird").expect("tags");
        assert_eq!(given.labels.tags, ["cat", "dog", "bird"]);
        let many = (0..40).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        assert!(given.add_tags(&many).is_err());
        assert!(given.add_tags(&"x".repeat(65)).is_err());
        assert!(given.set_title("a\u{7}b").is_err());
        given.set_title("  ").expect("empty");
        assert_eq!(given.labels.title, None);
    }

    #[test]
    fn fingerprint_covers_all_labels() {
        let content = ContentHash::of(b"x");
        let of = |title: Option<&str>, tags: &[&str], filename: Option<&str>| {
            UploadLabels {
                labels: Labels {
                    title: title.map(str::to_owned),
                    tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
                    filename: filename.map(str::to_owned),
                },
                visibility: None,
            }
            .fingerprint(content)
        };
        let all = [
            of(None, &[], None),
            of(Some("ab"), &[], None),
            of(None, &[], Some("ab")),
            of(None, &["ab"], None),
            of(None, &["a", "b"], None),
            of(Some("a"), &["b"], None),
            UploadLabels::default().fingerprint(ContentHash::of(b"y")),
        ];
        for (n, one) in all.iter().enumerate() {
            assert!(all[n + 1..].iter().all(|other| other != one), "{n}");
        }
    }
}
