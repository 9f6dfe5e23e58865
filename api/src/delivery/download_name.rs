//! The name that a client saves an image under.

use axum::http::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use safelight_domain::{ImageFormat, is_invisible_control};

/// Characters that stand for themselves in an RFC 8187 value.
const ATTR_CHAR: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The file name of an upload with the extension of the `format` that the bytes have: a system decides by it
/// what opens the file, and an image may be a program or a web page too.
pub fn of(filename: Option<&str>, format: ImageFormat) -> Option<String> {
    // Older releases stored names with characters that hide the extension.
    let name: String = filename?.chars().filter(|c| !is_invisible_control(*c)).collect();
    let (stem, extension) = name.rsplit_once('.').unwrap_or((&name, ""));
    let stem = stem.trim_end_matches([' ', '.']);
    if !stem.is_empty() && format.is_extension(extension) {
        return Some(format!("{stem}.{extension}"));
    }
    let stem = if stem.is_empty() { "image" } else { stem };
    Some(format!("{stem}.{}", format.extension()))
}

/// `inline`, with the name to save under: for old clients in ASCII, for others as RFC 8187 says.
pub fn inline(filename: Option<&str>) -> Option<HeaderValue> {
    let Some(name) = filename else { return Some(HeaderValue::from_static("inline")) };
    let plain = |c: char| if matches!(c, ' '..='~') && !"\"\\%".contains(c) { c } else { '_' };
    let ascii: String = name.chars().map(plain).collect();
    let encoded = utf8_percent_encode(name, ATTR_CHAR);
    HeaderValue::from_str(&format!("inline; filename=\"{ascii}\"; filename*=UTF-8''{encoded}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_cannot_break_out_of_their_header() {
        let value = inline(Some("a\"; x=\\\u{e9}.jpg")).expect("a header value");
        assert_eq!(
            value,
            "inline; filename=\"a_; x=__.jpg\"; filename*=UTF-8''a%22%3B%20x%3D%5C%C3%A9.jpg"
        );
        assert_eq!(inline(None).expect("inline"), "inline");
    }

    #[test]
    fn name_has_the_extension_of_the_bytes() {
        use ImageFormat::{Jpeg, Png, Tiff, Webp};
        for (name, format, expected) in [
            ("cat.tiff", Webp, "cat.webp"),
            ("cat", Webp, "cat.webp"),
            ("a.b.gif", Webp, "a.b.webp"),
            (".x", Webp, "image.webp"),
            ("x.html", Png, "x.png"),
            ("x.png.exe", Png, "x.png.png"),
            ("x.exe. ", Png, "x.exe.png"),
            ("x. . .png", Png, "x.png"),
            ("..png", Png, "image.png"),
            ("a\u{202e}gpj.exe", Jpeg, "agpj.jpg"),
            ("a.jp\u{200f}g", Jpeg, "a.jpg"),
            ("IMG.JPEG", Jpeg, "IMG.JPEG"),
            ("scan.TIF", Tiff, "scan.TIF"),
            ("", Png, "image.png"),
        ] {
            assert_eq!(of(Some(name), format).as_deref(), Some(expected), "{name:?}");
        }
        assert_eq!(of(None, Png), None);
    }
}
