//! The clean aperture (`clap`; ISO/IEC 14496-12, 12.1.4): the visible part of a picture.

/// The visible part of a coded picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crop {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

impl Crop {
    /// The same part of the picture before it was given this EXIF orientation; `size` is the picture's then.
    pub fn before(self, orientation: u8, (width, height): (u32, u32)) -> Self {
        let Self { x, y, .. } = self;
        let part =
            if orientation > 4 { (self.height, self.width) } else { (self.width, self.height) };
        let (right, bottom) = (|x| width - part.0 - x, |y| height - part.1 - y);
        let (x, y) = match orientation {
            2 => (right(x), y),
            3 => (right(x), bottom(y)),
            4 => (x, bottom(y)),
            5 => (y, x),
            6 => (y, bottom(x)),
            7 => (right(y), bottom(x)),
            8 => (right(y), x),
            _ => (x, y),
        };
        Self { x, y, width: part.0, height: part.1 }
    }
}

/// A clean aperture as the file has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Aperture {
    /// Width, height, and the distances of its center from the picture's, as numerators and denominators.
    pub numbers: [u32; 8],
    /// The rotation that comes before it in the file.
    pub rotation: Option<u8>,
    /// The mirror that comes before it in the file.
    pub mirror: Option<u8>,
}

/// One side of a clean aperture, in fractions of pixels.
pub(crate) struct ApertureSide {
    pub length: (u32, u32),
    /// The distance of its center from the center of the whole side. The numerator is signed.
    pub offset: (u32, u32),
}

impl ApertureSide {
    /// Start and length within a side of `whole` pixels, if they are whole pixels and inside of it, as libavif demands.
    pub fn whole(&self, whole: u32) -> Option<(u32, u32)> {
        let &Self { length, offset } = self;
        if length.1 == 0 || offset.1 == 0 || !length.0.is_multiple_of(length.1) {
            return None;
        }
        let length = length.0 / length.1;
        let margin = i128::from(whole.checked_sub(length)?);
        let (moved, by) = (i128::from(offset.0.cast_signed()), i128::from(offset.1));
        let (start, by) = (margin * by + 2 * moved, 2 * by);
        if length == 0 || start % by != 0 || !(0..=margin).contains(&(start / by)) {
            return None;
        }
        Some((u32::try_from(start / by).ok()?, length))
    }

    /// Start and length within a side of `whole` pixels, rounded and cut off at its ends as by libheif: the left edge is
    /// truncated, and the upper edge is `rounded`.
    pub fn rounded(&self, whole: u32, is_rounded: bool) -> Option<(u32, u32)> {
        let positive = |number: u32| i32::try_from(number).ok().map(i128::from);
        let (length, length_by) = (positive(self.length.0)?, positive(self.length.1)?);
        let (offset, offset_by) =
            (i128::from(self.offset.0.cast_signed()), positive(self.offset.1)?);
        if length_by == 0 || offset_by == 0 || round(length, length_by) == 0 {
            return None;
        }
        let last = i128::from(whole) - 1;
        let by = 2 * length_by * offset_by;
        let start = 2 * offset * length_by + last * length_by * offset_by
            - (length - length_by) * offset_by;
        let start = if is_rounded { round(start, by) } else { start / by };
        let end = round(length - length_by + start * length_by, length_by);
        // To libheif, an end before the side is beyond it.
        let end = if end < 0 { last } else { end.min(last) };
        let start = start.max(0);
        let length = u32::try_from(end - start + 1).ok().filter(|length| *length > 0)?;
        Some((u32::try_from(start).ok()?, length))
    }
}

/// Rounds to the nearest, but a negative sum towards 0.
fn round(numerator: i128, denominator: i128) -> i128 {
    (numerator + denominator / 2) / denominator
}
