//! Encoded words of mail (RFC 2047): `=?utf-8?B?w6QucG5n?=`. RFC 7578 does not allow them in forms; .NET's
//! `HttpClient` sends them.

use std::borrow::Cow;

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use encoding_rs::Encoding;
use percent_encoding::percent_decode_str;

/// Accepts words without padding, which some clients send.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A longer text stays as it is: looking for words takes quadratic time, and no file name is that long.
const MAX_BYTES: usize = 4096;

/// Bytes in one encoding: those of adjacent words are decoded together, since clients cut names between the
/// bytes of a character.
struct Run<'a> {
    encoding: &'static Encoding,
    bytes: Vec<u8>,
    /// What the words look like, for bytes that are not valid.
    source: &'a str,
}

impl Run<'_> {
    fn text(&self) -> String {
        decoded(self.encoding, &self.bytes).unwrap_or_else(|| self.source.to_owned())
    }
}

/// `text` with its encoded words decoded. What is none, or cannot be decoded, stays as it is.
pub fn decode(text: &str) -> String {
    if text.len() > MAX_BYTES {
        return text.to_owned();
    }
    let mut found = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("=?") {
        found.push_str(&rest[..at]);
        let (piece, after) = if let Some((run, after)) = run(&rest[at..]) {
            (run.text(), after)
        } else {
            ("=?".to_owned(), &rest[at + 2..])
        };
        found.push_str(&piece);
        rest = after;
    }
    found.push_str(rest);
    found
}

/// The words at the start of `text` that have the same encoding, and what follows them.
fn run(text: &str) -> Option<(Run<'_>, &str)> {
    let (encoding, mut bytes, mut rest) = word(text)?;
    // White space between two words is not shown (RFC 2047, section 6.2).
    while let Some((next, more, after)) = word(rest.trim_start())
        && next == encoding
    {
        bytes.extend(more);
        rest = after;
    }
    let source = &text[..text.len() - rest.len()];
    Some((Run { encoding, bytes, source }, rest))
}

/// The word at the start of `text`: its encoding and bytes, and what follows it.
fn word(text: &str) -> Option<(&'static Encoding, Vec<u8>, &str)> {
    let (charset, rest) = text.strip_prefix("=?")?.split_once('?')?;
    let (method, rest) = rest.split_once('?')?;
    let (encoded, after) = rest.split_once("?=")?;
    // `utf-8*en` names a language (RFC 2231, section 5).
    let charset = charset.split('*').next().unwrap_or_default();
    let bytes = match method {
        "B" | "b" => BASE64.decode(encoded).ok()?,
        // Like percent-encoding, but with `=`, and `_` for a space.
        "Q" | "q" => {
            let percent = encoded.replace('%', "%25").replace('=', "%").replace('_', " ");
            percent_decode_str(&percent).collect()
        }
        _ => return None,
    };
    Some((Encoding::for_label(charset.as_bytes())?, bytes, after))
}

/// `bytes` in an encoding, if they are valid in it.
pub(super) fn decoded(encoding: &'static Encoding, bytes: &[u8]) -> Option<String> {
    encoding.decode_without_bom_handling_and_without_replacement(bytes).map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_decoded_wherever_they_are() {
        let cases = [
            ("=?utf-8?B?w6TDti5wbmc=?=", "äö.png"),
            ("=?UTF-8?b?w6TDti5wbmc?=", "äö.png"),
            ("=?utf-8?Q?a_b=C3=A4=20100%.png?=", "a bä 100%.png"),
            ("=?utf-8?q?=c3=a4?=.png", "ä.png"),
            ("=?ISO-8859-1?Q?=E4?=.png", "ä.png"),
            ("=?utf-8*de?Q?=C3=A4?=.png", "ä.png"),
            ("=?iso-2022-jp?B?GyRCRnxLXBsoQg==?=.png", "日本.png"),
            ("a =?utf-8?Q?=C3=A4?= b", "a ä b"),
            // Cut in the middle of a character.
            ("=?utf-8?Q?=C3?= =?utf-8?Q?=A4.png?=", "ä.png"),
            ("=?utf-8?Q?a?=  =?iso-8859-1?Q?=E4?=", "a  ä"),
        ];
        for (text, expected) in cases {
            assert_eq!(decode(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_word_stays() {
        for text in [
            "",
            "a.png",
            "=?.png",
            "=?utf-8?B?w6Q",
            "=?utf-8?X?w6Q=?=",
            "=?klingon?B?w6Q=?=",
            "=?utf-8?B?*?=",
            "=?utf-8?Q?=FF?=.png",
            "100%?=",
        ] {
            assert_eq!(decode(text), text);
        }
        let long = "=?utf-8?Q?a?=".repeat(MAX_BYTES);
        assert_eq!(decode(&long), long);
    }
}
