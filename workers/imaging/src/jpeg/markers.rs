//! Parses the markers of a JPEG, without decoding it.
//!
//! Source: ISO/IEC 10918-1, annex B (markers, segment lengths, byte stuffing).

use std::ops::Range;

use memchr::memchr;

pub(super) const SOI: u8 = 0xD8;
pub(super) const EOI: u8 = 0xD9;
pub(super) const SOS: u8 = 0xDA;
pub(super) const DQT: u8 = 0xDB;
pub(super) const DHT: u8 = 0xC4;
pub(super) const DAC: u8 = 0xCC;
pub(super) const DRI: u8 = 0xDD;
const DHP: u8 = 0xDE;
pub(super) const APP0: u8 = 0xE0;
pub(super) const APP2: u8 = 0xE2;
pub(super) const APP14: u8 = 0xEE;

/// The frame header of JPEG-LS (ISO/IEC 14495-1), another method in the same container.
const SOF_LS: u8 = 0xF7;

/// The prefix of the segments of an ICC profile (ICC.1, annex B.4).
pub(super) const ICC_PREFIX: &[u8] = b"ICC_PROFILE\0";

/// The properties that precede the first scan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub width: u32,
    pub height: u32,
    /// Bits per sample.
    pub precision: u8,
    /// 1 for gray, 3 for color, 4 for CMYK; 0 if no frame header was found.
    pub components: u8,
    /// The code of the frame header, which says how the picture is coded.
    pub frame: u8,
    /// The identifiers of the components.
    pub ids: Vec<u8>,
    /// Whether coefficients are kept until the last scan: each component has a scan of its own, or several.
    pub has_several_scans: bool,
    /// Whether frames of growing size follow.
    pub is_hierarchical: bool,
    /// Samples of all components per pixel, in quarters: 4 for gray, 6 for 4:2:0, 12 for 4:4:4.
    pub quarter_samples: u32,
    /// The color profile, joined from its segments; none if they do not fit together.
    pub icc: Option<Vec<u8>>,
}

impl Header {
    /// Reads up to the first scan; `bytes` may be cut off after it. `None` if there is no frame
    /// header.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut header = Self::default();
        let mut profile = Vec::new();
        for part in Parts::new(bytes) {
            let segment = &bytes[part.body];
            match part.marker {
                0xC0..=0xC3 | 0xC5..=0xC7 | 0xC9..=0xCB | 0xCD..=0xCF | SOF_LS => {
                    header.read_frame(part.marker, segment)?;
                }
                DHP => header.is_hierarchical = true,
                APP2 if segment.starts_with(ICC_PREFIX) => profile.push(segment),
                SOS => {
                    let in_scan = segment.first().copied().unwrap_or(0);
                    header.has_several_scans =
                        header.is_progressive() || in_scan < header.components;
                    break;
                }
                _ => {}
            }
        }
        header.icc = joined_profile(profile);
        (header.components > 0).then_some(header)
    }

    /// Whether the coefficients of a block are spread over several scans.
    pub fn is_progressive(&self) -> bool {
        matches!(self.frame, 0xC2 | 0xCA)
    }

    /// Whether coefficients are coded arithmetically instead of by Huffman's method.
    pub fn is_arithmetic(&self) -> bool {
        matches!(self.frame, 0xC9..=0xCB)
    }

    /// Whether samples are predicted from their neighbors instead of transformed.
    pub fn is_lossless(&self) -> bool {
        matches!(self.frame, 0xC3 | 0xCB)
    }

    /// What no decoder here can decode about this picture, in the words of the standard.
    pub fn unsupported(&self) -> Option<String> {
        let bits = self.precision;
        Some(match (self.frame, self.components) {
            (SOF_LS, _) => "JPEG-LS".to_owned(),
            (0xC5..=0xC7 | 0xCD..=0xCF, _) => "a hierarchical JPEG".to_owned(),
            _ if self.is_hierarchical => "a hierarchical JPEG".to_owned(),
            (0xCB, _) => "a lossless JPEG with arithmetic coding".to_owned(),
            (0xC3, _) if bits != 8 => format!("a lossless JPEG of {bits} bits per sample"),
            _ if bits != 8 => format!("a JPEG of {bits} bits per sample"),
            _ if self.height == 0 => "a JPEG whose height follows its first scan (DNL)".to_owned(),
            (_, 1 | 3 | 4) => return None,
            (_, components) => format!("a JPEG of {components} components"),
        })
    }

    fn read_frame(&mut self, marker: u8, segment: &[u8]) -> Option<()> {
        let [precision, h1, h0, w1, w0, components, specs @ ..] = segment else { return None };
        self.precision = *precision;
        self.height = u16::from_be_bytes([*h1, *h0]).into();
        self.width = u16::from_be_bytes([*w1, *w0]).into();
        self.components = *components;
        self.frame = marker;
        self.ids = specs.chunks_exact(3).map(|spec| spec[0]).collect();
        let factors = specs
            .chunks_exact(3)
            .map(|spec| (u32::from(spec[1] >> 4).max(1), u32::from(spec[1] & 15).max(1)));
        let across = factors.clone().map(|(across, _)| across).max().unwrap_or(1);
        let down = factors.clone().map(|(_, down)| down).max().unwrap_or(1);
        let samples: u32 = factors.map(|(across, down)| across * down).sum();
        self.quarter_samples = (4 * samples).div_ceil(across * down);
        Some(())
    }
}

/// Whether the segments of a profile are numbered from 1 to their number, in any order, and none is empty.
pub(super) fn is_whole_profile(segments: &[&[u8]]) -> bool {
    let at = ICC_PREFIX.len();
    let mut numbers: Vec<usize> =
        segments.iter().filter_map(|segment| segment.get(at)).copied().map(usize::from).collect();
    numbers.sort_unstable();
    let all = segments.len();
    numbers.into_iter().eq(1..=all)
        && segments.iter().all(|segment| {
            segment.get(at + 1).copied().map(usize::from) == Some(all) && segment.len() > at + 2
        })
}

/// The profile of these segments; none if parts of it are missing or there twice.
fn joined_profile(mut segments: Vec<&[u8]>) -> Option<Vec<u8>> {
    if segments.is_empty() || !is_whole_profile(&segments) {
        return None;
    }
    let at = ICC_PREFIX.len();
    segments.sort_by_key(|segment| segment.get(at).copied());
    let parts = segments.into_iter().filter_map(|segment| segment.get(at + 2..));
    Some(parts.flatten().copied().collect())
}

/// A marker, and the segment that it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// The code of the marker.
    pub marker: u8,
    /// The bytes between the part before and this one, which belong to neither.
    pub stray: Range<usize>,
    /// Marker, length and contents.
    pub whole: Range<usize>,
    /// The contents.
    pub body: Range<usize>,
}

/// Iterates over the parts of a JPEG in order, except for markers without contents. Ends with EOI, which is the
/// last part, or where the bytes end. What follows EOI is not the picture: cameras append previews and videos.
pub(super) struct Parts<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Parts<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Whether the bytes end where a part does.
    pub fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// After SOS: skips the entropy-coded data of the scan, including its restart markers, and returns it.
    pub fn skip_scan(&mut self) -> Range<usize> {
        let start = self.at;
        while let Some(found) = memchr(0xFF, &self.bytes[self.at..]) {
            let marker = self.at + found;
            // Fill bytes may precede any marker.
            let fill = self.bytes[marker..].iter().take_while(|&&byte| byte == 0xFF).count();
            match self.bytes.get(marker + fill) {
                // Stuffing and restart markers.
                Some(0x00 | 0xD0..=0xD7) => self.at = marker + fill + 1,
                Some(_) => {
                    self.at = marker;
                    return start..marker;
                }
                None => break,
            }
        }
        self.at = self.bytes.len();
        start..self.at
    }
}

impl Iterator for Parts<'_> {
    type Item = Part;

    fn next(&mut self) -> Option<Part> {
        let first = self.at;
        let mut from = first;
        loop {
            let marker = from + memchr(0xFF, self.bytes.get(from..)?)?;
            let code = *self.bytes.get(marker + 1)?;
            let stray = first..marker;
            match code {
                // A fill byte: the code follows.
                0xFF => from = marker + 1,
                // Stuffing, and markers without contents.
                0x00 | 0x01 | 0xD0..=0xD7 => from = marker + 2,
                // Only the first two bytes may be SOI; another one is an error that the decoder reports.
                SOI | EOI => {
                    let end = marker + 2;
                    self.at = if code == EOI { self.bytes.len() } else { end };
                    return Some(Part { marker: code, stray, whole: marker..end, body: end..end });
                }
                _ => {
                    let length = self.bytes.get(marker + 2..)?.first_chunk()?;
                    let end = marker + 2 + usize::from(u16::from_be_bytes(*length)).max(2);
                    self.bytes.get(..end)?;
                    self.at = end;
                    let body = marker + 4..end;
                    return Some(Part { marker: code, stray, whole: marker..end, body });
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // generated samples are small
mod tests {
    use super::*;

    #[test]
    fn header_is_read_up_to_first_scan() {
        let frame = |marker, specs: &[u8]| {
            let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xEE, 0, 7, b'A', b'd', b'o', b'b', b'e'];
            // The second part of the profile first, after a fill byte.
            for (number, byte) in [(2, b'b'), (1, b'a')] {
                bytes.extend([0xFF, 0xFF, 0xE2, 0, 17]);
                bytes.extend(ICC_PREFIX);
                bytes.extend([number, 2, byte]);
            }
            bytes.extend([0xFF, marker, 0, 8 + specs.len() as u8, 8, 1, 2, 3, 4]);
            bytes.push(specs.len() as u8 / 3);
            bytes.extend(specs);
            bytes.extend([0xFF, SOS, 0, 3, 1, 0xFF, APP14]);
            bytes
        };
        let quarter = frame(0xC0, &[1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1]);
        let header = Header::read(&quarter).expect("a header");
        assert_eq!((header.width, header.height), (0x0304, 0x0102));
        assert_eq!((header.components, header.precision, header.quarter_samples), (3, 8, 6));
        assert!(!header.is_progressive() && header.has_several_scans, "one component per scan");
        assert_eq!(header.icc.as_deref(), Some(&b"ab"[..]));
        let gray = Header::read(&frame(0xC2, &[1, 0x11, 0])).expect("a header");
        assert_eq!((gray.components, gray.quarter_samples, gray.is_progressive()), (1, 4, true));
        let full = Header::read(&frame(0xC0, &[1, 0x11, 0, 2, 0x11, 1, 3, 0x11, 1]));
        assert_eq!(full.expect("a header").quarter_samples, 12);
        for end in 0..quarter.len() - 20 {
            assert_eq!(Header::read(&quarter[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn parts_end_with_the_end_marker_outside_of_segments() {
        let cases: [(&[u8], &[u8]); 6] = [
            (b"\xFF\xD8\xFF\xD9 and a video", &[SOI, EOI]),
            (b"\xFF\xD8", &[SOI]),
            // An end marker inside a segment (an embedded preview's) is not the picture's.
            (b"\xFF\xD8\xFF\xE1\0\x04\xFF\xD9", &[SOI, 0xE1]),
            (b"\xFF\xD8\xFF\xE1\0\x04\xFF\xD9\xFF\xFF\xD9", &[SOI, 0xE1, EOI]),
            // Stuffing, restarts and fill bytes belong to the scan.
            (b"\xFF\xD8\xFF\xDA\0\x02ab\xFF\0c\xFF\xFF\xD3d\xFF\xFF\xD9", &[SOI, SOS, EOI]),
            (b"\xFF\xD8\xFF\xDA\0\x02ab\xFF\0c\xFF\xD3d\xFF", &[SOI, SOS]),
        ];
        for (bytes, markers) in cases {
            let mut parts = Parts::new(bytes);
            let mut found = Vec::new();
            while let Some(part) = parts.next() {
                found.push(part.marker);
                if part.marker == SOS {
                    assert!(bytes[parts.skip_scan()].starts_with(b"ab"));
                }
            }
            assert_eq!(found, markers, "{bytes:x?}");
        }
    }

    #[test]
    fn variants_that_no_decoder_supports_are_named() {
        let header = |frame, precision, components| Header {
            height: 1,
            precision,
            components,
            frame,
            ..Header::default()
        };
        let hierarchical = Header { is_hierarchical: true, ..header(0xC0, 8, 3) };
        for (header, name) in [
            (header(0xC0, 8, 3), None),
            (header(0xC3, 8, 3), None),
            (header(0xC1, 12, 3), Some("a JPEG of 12 bits per sample")),
            (header(0xC3, 16, 1), Some("a lossless JPEG of 16 bits per sample")),
            (header(0xC6, 8, 3), Some("a hierarchical JPEG")),
            (hierarchical, Some("a hierarchical JPEG")),
            (header(0xCB, 8, 3), Some("a lossless JPEG with arithmetic coding")),
            (header(0xF7, 8, 3), Some("JPEG-LS")),
            (header(0xC0, 8, 2), Some("a JPEG of 2 components")),
        ] {
            assert_eq!(header.unsupported().as_deref(), name, "{header:?}");
        }
    }
}
