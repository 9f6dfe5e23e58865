//! The headers of a BMP, and where its pixels are.

use safelight_domain::Failure;

use crate::failure::{damaged, unsupported};

/// The size of the file header, in bytes.
const FILE_HEADER: usize = 14;

/// The size of the header of OS/2 1.x, which has 16-bit sides and palettes of three bytes per color.
const CORE_HEADER: usize = 12;

/// The size of the header of OS/2 2.x, in which two compressions have other meanings.
const OS2_HEADER: usize = 64;

/// The profile is in the file ("MBED").
const EMBEDDED_PROFILE: u32 = 0x4D42_4544;

/// How pixels are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Plain,
    RunLength4,
    RunLength8,
    RunLength24,
}

/// Where a channel is within a pixel. A channel of no bits is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mask {
    pub shift: u32,
    pub bits: u32,
}

pub(super) struct Header<'a> {
    pub width: u32,
    pub height: u32,
    pub is_top_down: bool,
    /// Bits per pixel.
    pub bits: u32,
    pub coding: Coding,
    /// Red, green, blue, alpha; for pixels of 16 and 32 bits.
    pub masks: [Mask; 4],
    pub palette: Vec<[u8; 3]>,
    pub icc: Option<&'a [u8]>,
    /// From the first pixel to the end of the file.
    pub pixels: &'a [u8],
    /// The least size of the pixels, in bytes. A picture with fewer is damaged.
    pub needed: usize,
}

/// Numbers at positions of the header; what is beyond its size is 0.
struct Fields<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl Fields<'_> {
    fn low_half(&self, at: usize) -> u32 {
        self.u32(at) & 0xFFFF
    }

    fn u32(&self, at: usize) -> u32 {
        let end = (at + 4).min(self.size);
        let bytes = self.bytes.get(FILE_HEADER..).and_then(|header| header.get(at..end));
        bytes
            .unwrap_or_default()
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u32::from(*byte))
    }

    /// A number at a position after the header, as if it were longer.
    fn beyond(&self, at: usize) -> u32 {
        Fields { bytes: self.bytes, size: at + 4 }.u32(at)
    }
}

impl<'a> Header<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Self, Failure> {
        let size = Fields { bytes, size: 4 }.u32(0) as usize;
        let is_known =
            size == CORE_HEADER || (16..=OS2_HEADER).contains(&size) || matches!(size, 108 | 124);
        let fields = Fields { bytes, size };
        if !is_known || bytes.len() < FILE_HEADER + size {
            return Err(damaged());
        }
        let (width, height, bits) = if size == CORE_HEADER {
            (fields.low_half(4), fields.low_half(6), fields.low_half(10))
        } else {
            (fields.u32(4), fields.u32(8), fields.low_half(14))
        };
        // A negative width is none; a negative height means that the first row is the top one.
        let signed = height.cast_signed();
        let is_top_down = size != CORE_HEADER && signed < 0;
        let height = if is_top_down { signed.unsigned_abs() } else { height };
        if width == 0 || height == 0 || width > i32::MAX.cast_unsigned() {
            return Err(damaged());
        }
        let compression = fields.u32(16);
        let coding = coding(compression, bits, size)?;
        let masks = masks(&fields, compression, bits)?;
        let masks_after = match compression {
            3 if size == 40 => 12,
            6 if size == 40 => 16,
            _ => 0,
        };
        let start = FILE_HEADER + size + masks_after;
        let row = row_bytes(width, bits).ok_or_else(damaged)?;
        let needed = if coding == Coding::Plain { row.saturating_mul(height as usize) } else { 1 };
        let layout = Layout {
            bytes,
            start,
            needed,
            entry: if size == CORE_HEADER { 3 } else { 4 },
            has_runs: coding != Coding::Plain,
        };
        let (palette, pixels) =
            layout.palette_and_pixels(bits, fields.u32(32)).ok_or_else(damaged)?;
        let icc = (size == 124 && fields.u32(56) == EMBEDDED_PROFILE).then(|| {
            let start = FILE_HEADER + fields.u32(112) as usize;
            bytes.get(start..start + fields.u32(116) as usize)
        });
        let icc = icc.flatten();
        Ok(Self { width, height, is_top_down, bits, coding, masks, palette, icc, pixels, needed })
    }
}

/// The bytes of an uncompressed row, which is padded to four.
pub(super) fn row_bytes(width: u32, bits: u32) -> Option<usize> {
    usize::try_from((u64::from(width) * u64::from(bits)).div_ceil(32) * 4).ok()
}

fn coding(compression: u32, bits: u32, size: usize) -> Result<Coding, Failure> {
    match (compression, bits) {
        (3, 1) if size == OS2_HEADER => Err(unsupported("BMP", "OS/2 fax compression")),
        (4, 24) if size == OS2_HEADER => Ok(Coding::RunLength24),
        (4, _) => Err(unsupported("BMP", "a JPEG inside")),
        (5, _) => Err(unsupported("BMP", "a PNG inside")),
        (0, 1 | 2 | 4 | 8 | 16 | 24 | 32) | (3 | 6, 16 | 32) => Ok(Coding::Plain),
        (1, 8) => Ok(Coding::RunLength8),
        (2, 4) => Ok(Coding::RunLength4),
        (0, 64) => Err(unsupported("BMP", "64 bits per pixel")),
        (11..=13, _) => Err(unsupported("BMP", "CMYK colors")),
        _ => Err(damaged()),
    }
}

fn masks(fields: &Fields<'_>, compression: u32, bits: u32) -> Result<[Mask; 4], Failure> {
    let masks = match (compression, bits) {
        // Without alpha when it is in the header for none, or in four bytes that nothing announces.
        (3 | 6, _) => {
            let has_alpha = compression == 6 || fields.size >= 56;
            let alpha = if has_alpha { fields.beyond(52) } else { 0 };
            [fields.beyond(40), fields.beyond(44), fields.beyond(48), alpha]
        }
        (_, 16) => [0x7C00, 0x03E0, 0x001F, 0],
        _ => [0x00FF_0000, 0x0000_FF00, 0x0000_00FF, 0],
    };
    let mut found = [Mask { shift: 0, bits: 0 }; 4];
    for (mask, found) in masks.into_iter().zip(&mut found) {
        if mask == 0 {
            continue;
        }
        *found = Mask { shift: mask.trailing_zeros(), bits: mask.count_ones() };
        if (mask >> found.shift).trailing_ones() != found.bits {
            return Err(unsupported("BMP", "a channel whose bits are not in one place"));
        }
    }
    Ok(found)
}

/// What is known of the places of palette and pixels.
struct Layout<'a> {
    bytes: &'a [u8],
    /// Where the palette starts.
    start: usize,
    /// The least size of the pixels, in bytes.
    needed: usize,
    /// The size of a color of the palette, in bytes.
    entry: usize,
    /// The size of the pixels says nothing about their place.
    has_runs: bool,
}

impl<'a> Layout<'a> {
    /// The file header says where the pixels are. If that is 0 or within the palette, it is wrong, unless the
    /// palette is shorter than it should be.
    fn palette_and_pixels(&self, bits: u32, colors_used: u32) -> Option<(Vec<[u8; 3]>, &'a [u8])> {
        let offset = self.bytes.get(10..FILE_HEADER)?;
        let offset = u32::from_le_bytes(offset.try_into().ok()?) as usize;
        let most = if bits <= 8 { 1 << bits } else { 0 };
        // Pixels without palette may announce colors for screens that have few; these are skipped.
        let count = match colors_used as usize {
            0 => most,
            used => used,
        };
        let expected = count.checked_mul(self.entry).and_then(|size| self.start.checked_add(size));
        let fits = |offset: &usize| {
            offset.checked_add(self.needed).is_some_and(|end| end <= self.bytes.len())
        };
        let least = if self.has_runs { Some(self.start) } else { expected };
        let is_wrong = least.is_some_and(|least| offset < least);
        let pixels = match expected.filter(fits) {
            Some(expected) if is_wrong => expected,
            _ if offset < self.start => self.start,
            _ => offset,
        };
        // Only the first bytes may be there; they suffice for the size.
        let end = pixels.min(self.bytes.len());
        let colors = self.bytes.get(self.start..end).unwrap_or_default();
        let colors = colors.chunks_exact(self.entry).take(count.min(most));
        let palette = colors.map(|color| [color[2], color[1], color[0]]).collect();
        Some((palette, &self.bytes[end..]))
    }
}
