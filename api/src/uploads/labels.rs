//! Reading labels from requests.

use axum::http::{HeaderMap, header};
use percent_encoding::percent_decode_str;
use safelight_domain::{Label, Labels};

use crate::http::problem::{Problem, ProblemCode};

/// Sets a label from text.
pub fn set(labels: &mut Labels, label: Label, text: &str) -> Result<(), Problem> {
    labels.set(label, text).map_err(|why| invalid(label.as_str(), &why))
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
}
