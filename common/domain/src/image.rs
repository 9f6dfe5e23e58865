//! Images and their renditions.

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, de::Error};

use super::{ContentHash, ImageId, Labels, Owner, Size, Visibility, text_enum::text_enum};

text_enum! {
    /// A picture's format, detected from its bytes, never from a file name or a media type.
    "image format" ImageFormat {
        /// JPEG (ISO 10918).
        Jpeg = "jpeg",
        /// PNG.
        Png = "png",
        /// GIF.
        Gif = "gif",
        /// WebP.
        Webp = "webp",
        /// TIFF.
        Tiff = "tiff",
        /// Windows bitmap.
        Bmp = "bmp",
        /// AVIF.
        Avif = "avif",
        /// HEIC.
        Heic = "heic",
    }
}

impl ImageFormat {
    /// The number of bytes that [`ImageFormat::sniff`] needs.
    pub const SNIFF_BYTES: usize = 32;

    /// Detects the format from the first bytes; `None` if it is unknown.
    ///
    /// Signatures as in the formats' specifications (see also WHATWG MIME Sniffing, section 6.1).
    pub fn sniff(head: &[u8]) -> Option<Self> {
        match head {
            [0xFF, 0xD8, 0xFF, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => Some(Self::Png),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::Webp),
            // TIFF, and BigTIFF with its two constants.
            [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Some(Self::Tiff),
            [b'I', b'I', 43, 0, 8, 0, 0, 0, ..] | [b'M', b'M', 0, 43, 0, 8, 0, 0, ..] => {
                Some(Self::Tiff)
            }
            [b'B', b'M', rest @ ..] if is_bmp(rest) => Some(Self::Bmp),
            [_, _, _, _, b'f', b't', b'y', b'p', brands @ ..] => heif(brands),
            _ => None,
        }
    }

    /// The media type (RFC 6838) to serve it with.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Png => "image/png",
            Self::Gif => "image/gif",
            Self::Webp => "image/webp",
            Self::Tiff => "image/tiff",
            Self::Bmp => "image/bmp",
            Self::Avif => "image/avif",
            Self::Heic => "image/heic",
        }
    }

    /// The usual file name extension, without the dot.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            other => other.as_str(),
        }
    }

    /// Whether file names of this format end like this, in any case.
    pub fn is_extension(self, text: &str) -> bool {
        let others: &[&str] = match self {
            Self::Jpeg => &["jpeg", "jpe", "jfif"],
            Self::Png => &["apng"],
            Self::Tiff => &["tif"],
            Self::Heic => &["heif", "hif"],
            _ => &[],
        };
        others.iter().chain([&self.extension()]).any(|known| known.eq_ignore_ascii_case(text))
    }
}

/// Whether what follows `BM` is the header of a bitmap: twelve bytes of which none is certain, and the size of a known
/// second header.
fn is_bmp(rest: &[u8]) -> bool {
    let size = rest.get(12..).and_then(<[u8]>::first_chunk).copied().map(u32::from_le_bytes);
    matches!(size, Some(12 | 16..=64 | 108 | 124))
}

/// The format that the first known brand of a file names: the major brand, and after its version the
/// compatible brands, as far as they are among the given bytes (ISO/IEC 14496-12, section 4.3).
fn heif(brands: &[u8]) -> Option<ImageFormat> {
    let (brands, _) = brands.as_chunks::<4>();
    let named = brands.iter().enumerate().filter(|(at, _)| *at != 1);
    named.map(|(_, brand)| brand).find_map(|brand| match brand {
        b"avif" | b"avis" => Some(ImageFormat::Avif),
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" => Some(ImageFormat::Heic),
        _ => None,
    })
}

/// A position on Earth, in degrees (WGS 84).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Gps {
    /// Positive to the north.
    pub latitude: f64,
    /// Positive to the east.
    pub longitude: f64,
}

/// A picture's properties, read by the write job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// The format, confirmed by the header.
    pub format: ImageFormat,
    /// Width in pixels as coded, before rotation.
    pub width: u32,
    /// Height in pixels as coded, before rotation.
    pub height: u32,
    /// EXIF orientation, 1–8; 1 if absent.
    pub orientation: u8,
    /// EXIF `DateTimeOriginal`, converted to UTC if the camera recorded its offset, and otherwise taken as
    /// UTC.
    pub taken_at: Option<NaiveDateTime>,
    /// EXIF position; kept only if `keep_gps` is set.
    pub gps: Option<Gps>,
}

impl ImageFacts {
    /// The size that a person sees: upright. Stores and workers have the size as coded beside the orientation,
    /// so nodes of all versions agree about what is recorded.
    pub fn upright_size(&self) -> Size {
        // EXIF 2.32, tag 0x0112: from 5 on, rows of the coded picture are columns of the upright one.
        if (5..=8).contains(&self.orientation) {
            Size { width: self.height, height: self.width }
        } else {
            Size { width: self.width, height: self.height }
        }
    }
}

/// An uploaded image in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// The hash of its bytes, which names its blob.
    pub sha256: ContentHash,
    /// The size of its bytes.
    pub bytes: u64,
    /// The format; detected from the first bytes until [`Image::facts`] is set.
    pub format: ImageFormat,
    /// Set when the write job succeeds.
    pub facts: Option<ImageFacts>,
    /// What the client calls it.
    pub labels: Labels,
    /// When the upload was accepted.
    pub created_at: DateTime<Utc>,
    /// When the write job had stored its blob.
    pub stored_at: Option<DateTime<Utc>>,
    /// Its upload was cancelled, or it was deleted; its bytes are removed or will be.
    pub discarded: bool,
    /// It was deleted: its metadata is removed as well, and once its bytes are, [`Image::sha256`] is all
    /// zeros.
    pub deleted: bool,
    /// The owner.
    pub owner: Owner,
    /// All renditions of its blob, of any preset and fingerprint.
    pub renditions: Vec<Rendition>,
    /// What to show until a rendition is loaded; `None` until its blob is rendered.
    pub placeholder: Option<Placeholder>,
}

impl Image {
    /// Who may read its bytes.
    pub fn visibility(&self) -> Visibility {
        // A stored image has one. Without it, nobody else may.
        self.labels.visibility.unwrap_or(Visibility::Private)
    }
}

/// A picture that was made from a blob by a preset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rendition {
    /// The preset's name.
    pub preset: String,
    /// The fingerprint of the preset's parameters at that time.
    pub fingerprint: String,
    /// Its format.
    pub format: ImageFormat,
    /// Width in pixels, upright.
    pub width: u32,
    /// Height in pixels, upright.
    pub height: u32,
    /// Its size.
    pub bytes: u64,
    /// The hash of its bytes, which is the `ETag`.
    pub sha256: ContentHash,
    /// When the store recorded it; `None` before. Changes if the bytes change. Ignored in a decoder's
    /// response.
    #[serde(skip)]
    pub made_at: Option<DateTime<Utc>>,
}

/// What to show until a picture is loaded. It belongs to the blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placeholder {
    /// A very blurred preview of the upright picture: a `ThumbHash` (github.com/evanw/thumbhash).
    #[serde(deserialize_with = "thumbhash")]
    pub thumbhash: Vec<u8>,
    /// The dominant color: red, green and blue of sRGB.
    pub dominant_color: [u8; 3],
}

impl Placeholder {
    /// The possible lengths of a `ThumbHash`.
    pub const THUMBHASH_BYTES: std::ops::RangeInclusive<usize> = 5..=25;

    /// The color in CSS: `#rrggbb`.
    pub fn css_color(&self) -> String {
        let [red, green, blue] = self.dominant_color;
        format!("#{red:02x}{green:02x}{blue:02x}")
    }

    /// Parses the result of [`Placeholder::css_color`].
    pub fn parse_css_color(text: &str) -> Option<[u8; 3]> {
        let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6)?;
        // `from_str_radix` accepts signs.
        digits.bytes().all(|digit| digit.is_ascii_hexdigit()).then_some(())?;
        let [_, color @ ..] = u32::from_str_radix(digits, 16).ok()?.to_be_bytes();
        Some(color)
    }
}

/// Checks the length, because it comes from a decoder, which a picture may have exploited.
fn thumbhash<'de, D: Deserializer<'de>>(bytes: D) -> Result<Vec<u8>, D::Error> {
    let bytes = Vec::<u8>::deserialize(bytes)?;
    if Placeholder::THUMBHASH_BYTES.contains(&bytes.len()) {
        Ok(bytes)
    } else {
        Err(D::Error::invalid_length(bytes.len(), &"5 to 25 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_detected_by_signature() {
        let cases: [(&[u8], Option<ImageFormat>); 20] = [
            (b"\xFF\xD8\xFF\xE0\0\x10JFIF", Some(ImageFormat::Jpeg)),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", Some(ImageFormat::Png)),
            (b"GIF89a", Some(ImageFormat::Gif)),
            (b"RIFF\x10\0\0\0WEBPVP8 ", Some(ImageFormat::Webp)),
            (b"RIFF\x10\0\0\0WAVEfmt ", None),
            (b"II*\0\x08\0\0\0", Some(ImageFormat::Tiff)),
            (b"\0\0\0\x1cftypavif\0\0\0\0", Some(ImageFormat::Avif)),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", Some(ImageFormat::Avif)),
            (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", Some(ImageFormat::Heic)),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heix", Some(ImageFormat::Heic)),
            (b"\0\0\0\x1cftypheix\0\0\0\0mif1avif", Some(ImageFormat::Heic)),
            (b"\0\0\0\x1cftypavif\0\0\0\0mif1heic", Some(ImageFormat::Avif)),
            (b"\0\0\0\x1cftypmif1\0\0\0\0mif1miaf", None),
            (b"\0\0\0\x1cftypmp42avifmp42", None),
            (b"BM, I said, this is text", None),
            (b"BM\x36\x48\0\0\x07\0\x09\0\x36\0\0\0\x28\0\0\0", Some(ImageFormat::Bmp)),
            (b"MM\0+\0\x08\0\0\0\0\0\0\0\0\0\x10", Some(ImageFormat::Tiff)),
            (b"II+\0\x04\0\0\0", None),
            (b"<svg xmlns=", None),
            (b"", None),
        ];
        for (head, format) in cases {
            assert_eq!(ImageFormat::sniff(head), format, "{head:?}");
        }
    }

    #[test]
    fn upright_size_exchanges_sides_from_orientation_5_on() {
        for orientation in 1..=8 {
            let facts = ImageFacts {
                format: ImageFormat::Jpeg,
                width: 30,
                height: 20,
                orientation,
                taken_at: None,
                gps: None,
            };
            let expected = if orientation < 5 { (30, 20) } else { (20, 30) };
            let Size { width, height } = facts.upright_size();
            assert_eq!((width, height), expected, "orientation {orientation}");
        }
    }

    #[test]
    fn css_colors_parse_back() {
        for color in [[0, 0, 0], [1, 160, 255], [255, 255, 255]] {
            let placeholder = Placeholder { thumbhash: vec![7; 5], dominant_color: color };
            assert_eq!(Placeholder::parse_css_color(&placeholder.css_color()), Some(color));
        }
        for text in ["", "#", "#12345", "#1234567", "123456", "#+12345", "#12345g", "#12345é"] {
            assert_eq!(Placeholder::parse_css_color(text), None, "{text}");
        }
    }

    #[test]
    fn placeholder_of_an_impossible_length_is_rejected() {
        for length in [0_usize, 4, 5, 25, 26] {
            let placeholder = Placeholder { thumbhash: vec![7; length], dominant_color: [1, 2, 3] };
            let json = serde_json::to_string(&placeholder).expect("JSON");
            let read = serde_json::from_str::<Placeholder>(&json).ok();
            assert_eq!(read, (5..=25).contains(&length).then_some(placeholder));
        }
    }
}
