//! Parses the markers of a JPEG, without decoding it.
//!
//! Source: ISO/IEC 10918-1, annex B (markers, segment lengths, byte stuffing).

use memchr::memchr;

const SOI: u8 = 0xD8;
const EOI: u8 = 0xD9;
const SOS: u8 = 0xDA;
const APP2: u8 = 0xE2;
const APP14: u8 = 0xEE;

/// The prefix of the segments of an ICC profile (ICC.1, annex B.4).
const ICC_PREFIX: &[u8] = b"ICC_PROFILE\0";

/// The properties that precede the first scan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub width: u32,
    pub height: u32,
    /// Bits per sample.
    pub precision: u8,
    /// 1 for gray, 3 for color, 4 for CMYK; 0 if no frame header was found.
    pub components: u8,
    pub is_progressive: bool,
    /// Samples of all components per pixel, in quarters: 4 for gray, 6 for 4:2:0, 12 for 4:4:4.
    pub quarter_samples: u32,
    /// Whether Adobe's marker is present, which means that inks are inverted.
    pub is_adobe: bool,
    /// The color profile, joined from its segments.
    pub icc: Option<Vec<u8>>,
}

impl Header {
    /// Reads up to the first scan; `bytes` may be cut off after it. `None` if there is no frame
    /// header.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut header = Self::default();
        let mut profile: Vec<(u8, &[u8])> = Vec::new();
        for (marker, segment) in Segments::new(bytes) {
            match marker {
                // All frame headers but those of hierarchical pictures, which no decoder supports.
                0xC0..=0xC3 | 0xC9..=0xCB => header.read_frame(marker, segment)?,
                APP14 if segment.starts_with(b"Adobe") => header.is_adobe = true,
                APP2 => {
                    if let Some([number, _count, part @ ..]) = segment.strip_prefix(ICC_PREFIX) {
                        profile.push((*number, part));
                    }
                }
                SOS => break,
                _ => {}
            }
        }
        profile.sort_by_key(|(number, _)| *number);
        let profile: Vec<u8> = profile.into_iter().flat_map(|(_, part)| part).copied().collect();
        header.icc = Some(profile).filter(|profile| !profile.is_empty());
        (header.components > 0).then_some(header)
    }

    fn read_frame(&mut self, marker: u8, segment: &[u8]) -> Option<()> {
        let [precision, h1, h0, w1, w0, components, specs @ ..] = segment else { return None };
        self.precision = *precision;
        self.height = u16::from_be_bytes([*h1, *h0]).into();
        self.width = u16::from_be_bytes([*w1, *w0]).into();
        self.components = *components;
        self.is_progressive = matches!(marker, 0xC2 | 0xCA);
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

/// Iterates over the segments before the first scan: marker and contents.
struct Segments<'a> {
    rest: &'a [u8],
}

impl<'a> Segments<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let at = memchr(0xFF, self.rest)?;
            let (marker, rest) = self.rest[at + 1..].split_first()?;
            match marker {
                // Stuffing and markers without contents. A fill byte starts the next marker.
                0x00 | 0x01 | 0xD0..=SOI => self.rest = rest,
                0xFF => self.rest = &self.rest[at + 1..],
                &EOI => return None,
                marker => {
                    let length = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
                    let segment = rest.get(2..length.max(2))?;
                    self.rest = &rest[length.max(2)..];
                    return Some((*marker, segment));
                }
            }
        }
    }
}

/// Whether the segments and scans of a JPEG continue up to its end marker. Ignores bytes after it:
/// cameras append previews and short videos.
pub(crate) fn is_complete(bytes: &[u8]) -> bool {
    let mut at = 2; // after SOI
    loop {
        // In a scan `FF` occurs only before a marker or stuffing; elsewhere a marker must follow immediately.
        // Searching for the next `FF` skips entropy-coded data and stray bytes.
        let Some(skipped) = bytes.get(at..).and_then(|rest| memchr(0xFF, rest)) else {
            return false;
        };
        at += skipped + 1;
        match bytes.get(at) {
            None => return false,
            Some(&EOI) => return true,
            // Stuffing, restart markers, TEM and SOI have no length.
            Some(0x00 | 0x01 | 0xD0..=SOI) => at += 1,
            // A fill byte: the marker's code follows.
            Some(0xFF) => {}
            Some(_) => {
                let Some(&[high, low]) = bytes.get(at + 1..at + 3) else { return false };
                at += 1 + usize::from(u16::from_be_bytes([high, low]));
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
        assert!(header.is_adobe && !header.is_progressive);
        assert_eq!(header.icc.as_deref(), Some(&b"ab"[..]));
        let gray = Header::read(&frame(0xC2, &[1, 0x11, 0])).expect("a header");
        assert_eq!((gray.components, gray.quarter_samples, gray.is_progressive), (1, 4, true));
        let full = Header::read(&frame(0xC0, &[1, 0x11, 0, 2, 0x11, 1, 3, 0x11, 1]));
        assert_eq!(full.expect("a header").quarter_samples, 12);
        for end in 0..quarter.len() - 20 {
            assert_eq!(Header::read(&quarter[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn only_end_marker_outside_segments_counts() {
        let cases: [(&[u8], bool); 7] = [
            (b"\xFF\xD8\xFF\xD9", true),
            (b"\xFF\xD8\xFF\xD9 and a video", true),
            (b"\xFF\xD8", false),
            // An end marker inside a segment (an embedded preview's) is not the picture's.
            (b"\xFF\xD8\xFF\xE1\0\x04\xFF\xD9", false),
            (b"\xFF\xD8\xFF\xE1\0\x04\xFF\xD9\xFF\xFF\xD9", true),
            // Stuffing and restarts belong to the scan.
            (b"\xFF\xD8\xFF\xDA\0\x02ab\xFF\0c\xFF\xD3d\xFF\xD9", true),
            (b"\xFF\xD8\xFF\xDA\0\x02ab\xFF\0c\xFF\xD3d\xFF", false),
        ];
        for (bytes, complete) in cases {
            assert_eq!(is_complete(bytes), complete, "{bytes:x?}");
        }
    }
}
