//! From the bytes of a row to samples of 8 bits.

use half::f16;

use super::{
    directory::unsigned,
    page::{Page, Predictor, SampleKind},
};

/// Undoes what a predictor subtracted from a row. Afterwards its samples are in the file's byte order.
pub(super) fn unpredict(page: &Page<'_>, row: &mut [u8]) {
    let big_endian = page.directory.file().big_endian;
    let stride = page.chunk_samples();
    let size = page.bits as usize / 8;
    match page.predictor {
        Predictor::None => {}
        Predictor::Horizontal if size == 1 => add_left(row, stride),
        Predictor::Horizontal => add_left_wide(row, stride, size, big_endian),
        Predictor::Float => {
            // Adobe, TIFF technical note 3: the bytes of each sample are in planes, the highest first.
            add_left(row, stride);
            let planes = row.to_vec();
            let count = row.len() / size.max(1);
            for (at, sample) in row.chunks_exact_mut(size).enumerate() {
                for (place, byte) in sample.iter_mut().enumerate() {
                    let plane = if big_endian { place } else { size - 1 - place };
                    *byte = planes[plane * count + at];
                }
            }
        }
    }
}

fn add_left(row: &mut [u8], stride: usize) {
    for at in stride..row.len() {
        row[at] = row[at].wrapping_add(row[at - stride]);
    }
}

fn add_left_wide(row: &mut [u8], stride: usize, size: usize, big_endian: bool) {
    let step = stride * size;
    let mut at = step;
    while at + size <= row.len() {
        let left = unsigned(&row[at - step..at - step + size], big_endian);
        let sum = unsigned(&row[at..at + size], big_endian).wrapping_add(left);
        let bytes = if big_endian { sum.to_be_bytes() } else { sum.to_le_bytes() };
        let low = if big_endian { &bytes[8 - size..] } else { &bytes[..size] };
        row[at..at + size].copy_from_slice(low);
        at += size;
    }
}

/// Reads the samples of rows.
#[derive(Clone, Copy)]
pub(super) struct SampleReader {
    bits: usize,
    kind: SampleKind,
    big_endian: bool,
}

impl SampleReader {
    pub fn new(page: &Page<'_>) -> Self {
        let big_endian = page.directory.file().big_endian;
        Self { bits: page.bits as usize, kind: page.kind, big_endian }
    }

    /// A sample as stored; 0 beyond the end of the row.
    pub fn raw(self, row: &[u8], index: usize) -> u64 {
        let start = index * self.bits;
        if self.bits.is_multiple_of(8) {
            let bytes = row.get(start / 8..(start + self.bits) / 8);
            return bytes.map_or(0, |bytes| unsigned(bytes, self.big_endian));
        }
        // Other sizes are packed from the highest bit on, in either byte order.
        let last = (start + self.bits).div_ceil(8);
        let bytes = row.get(start / 8..last).unwrap_or_default();
        let joined = unsigned(bytes, true) >> (last * 8 - start - self.bits);
        joined & ((1 << self.bits) - 1)
    }

    /// A sample as one of 256 levels. Floating-point samples are from 0 to 1.
    pub fn level(self, row: &[u8], index: usize) -> u8 {
        if self.bits == 8 {
            return row.get(index).copied().unwrap_or(0);
        }
        let raw = self.raw(row, index);
        match self.kind {
            SampleKind::Unsigned => scaled(raw, self.bits),
            SampleKind::Float => float_level(raw, self.bits),
        }
    }
}

/// Scales a number of so many bits to one of 8 bits, rounded.
fn scaled(value: u64, bits: usize) -> u8 {
    if bits > 24 {
        // The low bits cannot be seen.
        return scaled(value >> (bits - 24), 24);
    }
    let max = (1_u64 << bits) - 1;
    u8::try_from((value * 255 + max / 2) / max).unwrap_or(u8::MAX)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped; NaN becomes 0
fn float_level(raw: u64, bits: usize) -> u8 {
    let value = match bits {
        16 => f16::from_bits(raw as u16).to_f64(),
        32 => f32::from_bits(raw as u32).into(),
        _ => f64::from_bits(raw),
    };
    (value.clamp(0.0, 1.0) * 255.0).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_every_size_are_scaled() {
        let reader = |bits, kind, big_endian| SampleReader { bits, kind, big_endian };
        let integers = |bits, big_endian| reader(bits, SampleKind::Unsigned, big_endian);
        // 0b101 of 7, at bits 3 to 6.
        assert_eq!(integers(3, false).level(&[0b0001_0100], 1), 182);
        // 0xFFF and 0x800 of 12 bits.
        assert_eq!(integers(12, true).level(&[0xFF, 0xF8, 0x00], 0), 255);
        assert_eq!(integers(12, true).level(&[0xFF, 0xF8, 0x00], 1), 128);
        assert_eq!(integers(16, true).level(&[0x80, 0x00], 0), 128);
        assert_eq!(integers(16, false).level(&[0x00, 0x80], 0), 128);
        assert_eq!(integers(32, false).level(&[0, 0, 0, 0x80], 0), 128);
        assert_eq!(integers(64, true).level(&[0x80, 0, 0, 0, 0, 0, 0, 0], 0), 128);
        let float = |bits, bytes: &[u8]| reader(bits, SampleKind::Float, true).level(bytes, 0);
        assert_eq!(float(16, &f16::from_f32(0.5).to_be_bytes()), 128);
        assert_eq!(float(32, &2.5_f32.to_be_bytes()), 255);
        assert_eq!(float(64, &0.25_f64.to_be_bytes()), 64);
        assert_eq!(float(64, &f64::NAN.to_be_bytes()), 0);
    }
}
