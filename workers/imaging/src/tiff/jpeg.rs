//! Chunks that are JPEGs (TIFF, technical note 2): their tables are in a field of the page, and the page
//! says what the components mean, whatever the markers of the JPEG say.

use safelight_domain::Failure;
use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat};

use super::{
    directory::tag,
    page::{Color, Page},
};
use crate::{
    failure::{bug, damaged, unsupported},
    jpeg::Header,
};

/// The most bytes of the tables that all JPEGs of a page share, which are copied for each of them. All tables that JPEG
/// allows fit in a tenth of it.
const MAX_TABLES: usize = 1 << 16;

/// As for a JPEG file: a scan of a few bytes can make the decoder process all pixels again.
const MAX_SCANS: u32 = 100;

const START: [u8; 2] = [0xFF, 0xD8];
const END: u8 = 0xD9;
const START_OF_SCAN: u8 = 0xDA;

/// Decodes the JPEGs of one page. Each page has its own decoder, so that no table reaches another picture.
pub(super) struct JpegChunks {
    decompressor: Decompressor,
    /// The start of every JPEG: its color model, and the tables of the page.
    head: Vec<u8>,
    format: PixelFormat,
    /// Whether the memory for coefficients was counted.
    may_keep_coefficients: bool,
}

impl JpegChunks {
    pub fn new(page: &Page<'_>) -> Result<Self, Failure> {
        let format = match page.chunk_samples() {
            1 => PixelFormat::GRAY,
            3 => PixelFormat::RGB,
            _ => PixelFormat::CMYK,
        };
        let head = head(page)?;
        let may_keep_coefficients = first_keeps_coefficients(page);
        let mut decompressor = Decompressor::new().map_err(bug)?;
        decompressor.set_scan_limit(MAX_SCANS).map_err(bug)?;
        Ok(Self { decompressor, head, format, may_keep_coefficients })
    }

    /// Fills the first rows of a chunk of this size. YCbCr becomes RGB.
    pub fn decode(
        &mut self,
        stored: &[u8],
        [chunk_width, chunk_height]: [u32; 2],
        rows: &mut [u8],
    ) -> Result<(), Failure> {
        let mut jpeg = self.head.clone();
        let scan = copy_segments(stored, &mut jpeg).ok_or_else(damaged)?;
        if keeps_coefficients(&jpeg, scan) && !self.may_keep_coefficients {
            return Err(unsupported("TIFF", "JPEGs of which only some have several scans"));
        }
        jpeg.extend_from_slice(scan);
        let header = self.decompressor.read_header(&jpeg).map_err(|_| damaged())?;
        if header.is_lossless {
            return Err(unsupported("TIFF", "lossless JPEG compression"));
        }
        let size = self.format.size();
        let pitch = header.width * size;
        let components = match header.colorspace {
            Colorspace::Gray => 1,
            Colorspace::RGB | Colorspace::YCbCr => 3,
            Colorspace::CMYK | Colorspace::YCCK => 4,
        };
        let is_expected = components == size
            && header.width == chunk_width as usize
            && header.height <= chunk_height as usize
            && pitch * header.height >= rows.len();
        if !is_expected {
            return Err(damaged());
        }
        if pitch * header.height == rows.len() {
            return self.decompress(&jpeg, header.width, header.height, rows);
        }
        // The last strip may be as high as the others.
        let mut whole = vec![0; pitch * header.height];
        self.decompress(&jpeg, header.width, header.height, &mut whole)?;
        rows.copy_from_slice(&whole[..rows.len()]);
        Ok(())
    }

    fn decompress(
        &mut self,
        jpeg: &[u8],
        width: usize,
        height: usize,
        pixels: &mut [u8],
    ) -> Result<(), Failure> {
        let (pitch, format) = (width * self.format.size(), self.format);
        let output = Image { pixels, width, height, pitch, format };
        self.decompressor.decompress(jpeg, output).map_err(|_| damaged())
    }
}

/// The start of every JPEG of a page.
fn head(page: &Page<'_>) -> Result<Vec<u8>, Failure> {
    let mut head = START.to_vec();
    if page.chunk_samples() > 1 {
        // Adobe's marker: 1 is YCbCr, 0 is RGB or CMYK as it is.
        head.extend_from_slice(b"\xFF\xEE\0\x0EAdobe\0\x64\0\0\0\0");
        head.push(u8::from(page.color == Color::YCbCr));
    }
    if let Some(tables) = page.directory.field(tag::JPEG_TABLES) {
        if tables.bytes().len() > MAX_TABLES {
            return Err(unsupported("TIFF", "JPEG tables of more than 64 KiB"));
        }
        copy_segments(tables.bytes(), &mut head).ok_or_else(damaged)?;
    }
    Ok(head)
}

/// Whether the first JPEG of a page keeps its coefficients until its last scan. The others may only do so if it does.
pub(super) fn first_keeps_coefficients(page: &Page<'_>) -> bool {
    let start = || {
        let mut start = head(page).ok()?;
        let scan = copy_segments(page.chunks.bytes(&page.directory, 0)?, &mut start)?;
        Some(keeps_coefficients(&start, scan))
    };
    start().unwrap_or(false)
}

/// Whether all components are not in the first scan, or not completely.
fn keeps_coefficients(start: &[u8], scan: &[u8]) -> bool {
    // After the marker and the length.
    let in_scan = scan.get(4).copied().unwrap_or(0);
    Header::read(start).is_some_and(|jpeg| jpeg.is_progressive() || in_scan < jpeg.components)
}

/// Appends the segments before the scan, without those of applications, and returns the scan with its
/// header; it is empty if there are only tables.
fn copy_segments<'a>(stored: &'a [u8], to: &mut Vec<u8>) -> Option<&'a [u8]> {
    let mut rest = stored.strip_prefix(&START)?;
    loop {
        match rest {
            // Markers may be preceded by any number of fill bytes.
            [0xFF, 0xFF, ..] => rest = &rest[1..],
            [0xFF, END, ..] | [] => return Some(&[]),
            [0xFF, START_OF_SCAN, ..] => return Some(rest),
            [0xFF, marker, high, low, ..] => {
                let length = 2 + usize::from(u16::from_be_bytes([*high, *low]));
                let segment = rest.get(..length)?;
                if !matches!(marker, 0xE0..=0xEF | 0xFE) {
                    to.extend_from_slice(segment);
                }
                rest = &rest[length..];
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use safelight_domain::ErrorCode;

    use super::*;

    #[test]
    fn several_scans_must_be_those_that_were_counted() {
        let mut compressor = turbojpeg::Compressor::new().expect("a compressor");
        compressor.set_progressive(true).expect("set");
        compressor.set_subsamp(turbojpeg::Subsamp::Gray).expect("set");
        let format = PixelFormat::GRAY;
        let image = Image { pixels: &[99; 64][..], width: 8, height: 8, pitch: 8, format };
        let jpeg = compressor.compress_to_vec(image).expect("a JPEG");
        let decode = |may_keep_coefficients| {
            let decompressor = Decompressor::new().expect("a decompressor");
            let head = START.to_vec();
            let mut chunks = JpegChunks { decompressor, head, format, may_keep_coefficients };
            chunks.decode(&jpeg, [8, 8], &mut [0; 64]).map_err(|failure| failure.code)
        };
        assert_eq!(decode(false), Err(ErrorCode::UnsupportedFormat));
        assert_eq!(decode(true), Ok(()));
    }
}
