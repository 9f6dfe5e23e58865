//! `Content-Disposition` of uploads and of the parts of multipart bodies (RFC 6266, RFC 7578).
//!
//! Reads what clients send, not only what the RFCs allow: .NET's `HttpClient` sends file names as encoded
//! words (RFC 2047), urllib3 before 1.25 sends `filename*` (RFC 8187), Windows programs send paths with
//! backslashes.

use axum::http::{HeaderMap, header};
use encoding_rs::{Encoding, UTF_8, WINDOWS_1252};
use percent_encoding::percent_decode_str;

use super::encoded_words::{self, decoded};

/// Parameters that are read; clients send two or three.
const MAX_PARAMETERS: usize = 32;

/// The parameters of the header: names in lower case, values without quotes.
#[derive(Debug)]
pub struct ContentDisposition(Vec<(String, String)>);

impl ContentDisposition {
    /// `None` if there is no such header.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let bytes = headers.get(header::CONTENT_DISPOSITION)?.as_bytes();
        // Browsers send UTF-8. What is none comes from clients that send their system's encoding, in the West
        // this one, which contains ISO 8859-1.
        let text = decoded(UTF_8, bytes)
            .unwrap_or_else(|| WINDOWS_1252.decode_without_bom_handling(bytes).0.into_owned());
        Some(Self(parameters(&text)))
    }

    /// The name of a form field.
    pub fn name(&self) -> Option<&str> {
        self.parameter("name")
    }

    /// The file name. `filename*` takes precedence (RFC 6266, section 4.3), unless it cannot be decoded or is
    /// empty.
    pub fn filename(&self) -> Option<String> {
        let extended = self.parameter("filename*").and_then(extended_value);
        extended.or_else(|| self.parameter("filename").map(encoded_words::decode))
    }

    /// The first parameter of this name.
    fn parameter(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// The value of `filename*`: `utf-8'en'%e2%82%ac.jpg` (RFC 8187, section 3.2). The language may be empty.
fn extended_value(value: &str) -> Option<String> {
    let (charset, rest) = value.split_once('\'')?;
    let (_language, percent_encoded) = rest.split_once('\'')?;
    let bytes: Vec<u8> = percent_decode_str(percent_encoded).collect();
    let text = decoded(Encoding::for_label(charset.as_bytes())?, &bytes)?;
    (!text.is_empty()).then_some(text)
}

/// The parameters after the first `;`.
fn parameters(value: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let Some((_, mut rest)) = value.split_once(';') else { return found };
    while found.len() < MAX_PARAMETERS
        && let Some((before, after)) = rest.split_once('=')
    {
        // Without what has no value, and without what follows a closing quote.
        let name = before.rsplit(';').next().unwrap_or_default().trim().to_ascii_lowercase();
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

/// The text up to the closing quote, and what follows it. A backslash before another character than a quote or
/// a backslash stands for itself: it separates the folders of a Windows path.
fn unquoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &text[at + 1..]),
            '\\' => {
                let escaped = characters.next_if(|(_, next)| matches!(next, '"' | '\\'));
                value.push(escaped.map_or('\\', |(_, escaped)| escaped));
            }
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn read(value: &[u8]) -> ContentDisposition {
        let value = HeaderValue::from_bytes(value).expect("a header");
        let headers = HeaderMap::from_iter([(header::CONTENT_DISPOSITION, value)]);
        ContentDisposition::of(&headers).expect("there is one")
    }

    fn filename(value: &str) -> Option<String> {
        read(value.as_bytes()).filename()
    }

    #[test]
    fn plain_filenames_are_read() {
        let cases = [
            ("attachment; filename=cat.jpg", Some("cat.jpg")),
            ("form-data; name=\"a\"; filename=\"a; \\\"b\\\".jpg\"", Some("a; \"b\".jpg")),
            ("form-data; name=\"a\"; filename=\"a\\\\b.jpg\"", Some("a\\b.jpg")),
            ("form-data; name=file; filename=\"C:\\dir\\a.png\"", Some("C:\\dir\\a.png")),
            ("form-data; name=file ; FileName = \"a b.png\" ; x", Some("a b.png")),
            ("form-data; x; filename=\"ä.png\"", Some("ä.png")),
            ("form-data; filename=\"a.png\" x; filename=b.png", Some("a.png")),
            ("form-data; filename=\"\"", Some("")),
            ("form-data; filename=\"a=b.png", Some("a=b.png")),
            ("inline", None),
            ("attachment; filename", None),
            ("filename=a.png", None),
        ];
        for (value, expected) in cases {
            assert_eq!(filename(value).as_deref(), expected, "{value}");
        }
    }

    #[test]
    fn extended_filename_takes_precedence_if_it_can_be_decoded() {
        let cases = [
            ("attachment; filename=x.jpg; FileName*=UTF-8''%e2%82%ac.jpg", "€.jpg"),
            ("form-data; name=file; filename*=utf-8''%C3%A4%C3%B6.png", "äö.png"),
            ("form-data; filename*=utf-8'de'%C3%A4.png; filename=x.png", "ä.png"),
            ("form-data; filename*=\"utf-8''%C3%A4.png\"", "ä.png"),
            ("form-data; filename*=ISO-8859-1''%e4%f6.png; filename=x.png", "äö.png"),
            ("form-data; filename*=UTF-8''a%20b%2520.png", "a b%20.png"),
            ("form-data; filename*=UTF-8''%ff; filename=x.jpg", "x.jpg"),
            ("form-data; filename*=klingon''a; filename=x.jpg", "x.jpg"),
            ("form-data; filename*=UTF-8''; filename=x.jpg", "x.jpg"),
            ("form-data; filename*=a.png; filename=x.jpg", "x.jpg"),
            ("form-data; filename=\"=?utf-8?B?w6Q=?=\"; filename*=utf-8''%ff", "ä"),
        ];
        for (value, expected) in cases {
            assert_eq!(filename(value).as_deref(), Some(expected), "{value}");
        }
    }

    #[test]
    fn latin1_bytes_are_read() {
        let found = read(b"form-data; name=\"file\"; filename=\"\xE4\xF6.png\"");
        assert_eq!((found.name(), found.filename().as_deref()), (Some("file"), Some("äö.png")));
    }

    #[test]
    fn names_of_parameters_ignore_case() {
        for value in
            ["form-data; Name=\"file\"", "FORM-DATA;NAME=file", "form-data; filename=x; nAme=file"]
        {
            assert_eq!(read(value.as_bytes()).name(), Some("file"), "{value}");
        }
        assert_eq!(read(b"form-data; filename=x").name(), None);
    }
}
