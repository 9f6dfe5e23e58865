//! The pixels of a BMP.

use image::{DynamicImage, RgbImage, RgbaImage};

use super::header::{Coding, Header, Mask, row_bytes};

/// Decodes the pixels; `None` if they are damaged.
pub(super) fn decode(header: &Header<'_>) -> Option<DynamicImage> {
    if header.pixels.len() < header.needed {
        return None;
    }
    match header.coding {
        Coding::Plain if header.bits <= 8 => indexed(header),
        Coding::Plain if header.bits == 24 => true_color(header),
        Coding::Plain => masked(header),
        _ => run_lengths(header),
    }
}

/// The row of the picture that is stored at this place.
fn row_at(header: &Header<'_>, stored: u32) -> u32 {
    if header.is_top_down { stored } else { header.height - 1 - stored }
}

/// The color of an index; black if the palette has no such entry, as in browsers.
fn color(header: &Header<'_>, index: usize) -> [u8; 3] {
    header.palette.get(index).copied().unwrap_or_default()
}

fn indexed(header: &Header<'_>) -> Option<DynamicImage> {
    let rows = header.pixels.chunks_exact(row_bytes(header.width, header.bits)?);
    let mut image = RgbImage::new(header.width, header.height);
    let per_byte = 8 / header.bits;
    for (row, stored) in rows.zip(0..header.height) {
        let y = row_at(header, stored);
        for x in 0..header.width {
            let byte = row[(x / per_byte) as usize];
            let shift = (per_byte - 1 - x % per_byte) * header.bits;
            let index = usize::from(byte >> shift) & ((1 << header.bits) - 1);
            image.get_pixel_mut(x, y).0 = color(header, index);
        }
    }
    Some(image.into())
}

fn true_color(header: &Header<'_>) -> Option<DynamicImage> {
    let rows = header.pixels.chunks_exact(row_bytes(header.width, header.bits)?);
    let mut image = RgbImage::new(header.width, header.height);
    for (row, stored) in rows.zip(0..header.height) {
        let y = row_at(header, stored);
        for (x, [blue, green, red]) in (0..header.width).zip(row.as_chunks::<3>().0) {
            image.get_pixel_mut(x, y).0 = [*red, *green, *blue];
        }
    }
    Some(image.into())
}

/// Pixels of 16 or 32 bits. If alpha is 0 everywhere, the program that wrote it knew no alpha: the picture is
/// opaque, as on Windows and in browsers.
fn masked(header: &Header<'_>) -> Option<DynamicImage> {
    let rows = header.pixels.chunks_exact(row_bytes(header.width, header.bits)?);
    let mut image = RgbaImage::new(header.width, header.height);
    let has_alpha = header.masks[3].bits > 0;
    for (row, stored) in rows.zip(0..header.height) {
        let y = row_at(header, stored);
        for (x, bytes) in (0..header.width).zip(row.chunks_exact(header.bits as usize / 8)) {
            let pixel = bytes.iter().rev().fold(0, |pixel, byte| pixel << 8 | u32::from(*byte));
            let [red, green, blue, alpha] = header.masks.map(|mask| level(pixel, mask));
            let alpha = if has_alpha { alpha } else { u8::MAX };
            image.get_pixel_mut(x, y).0 = [red, green, blue, alpha];
        }
    }
    if image.pixels().all(|pixel| pixel.0[3] == 0) {
        image.pixels_mut().for_each(|pixel| pixel.0[3] = u8::MAX);
    }
    Some(image.into())
}

/// A channel of a pixel, scaled to 8 bits and rounded.
fn level(pixel: u32, mask: Mask) -> u8 {
    if mask.bits == 0 {
        return 0;
    }
    let max = u64::MAX >> (64 - mask.bits);
    let value = u64::from(pixel) >> mask.shift & max;
    u8::try_from((value * 255 + max / 2) / max).unwrap_or(u8::MAX)
}

/// Where the next pixel of run lengths goes.
struct Pen<'h> {
    header: &'h Header<'h>,
    image: RgbImage,
    x: u32,
    stored_row: u32,
}

impl Pen<'_> {
    /// What is outside of the picture is dropped.
    fn put(&mut self, color: [u8; 3]) {
        if self.x < self.header.width && self.stored_row < self.header.height {
            let y = row_at(self.header, self.stored_row);
            self.image.get_pixel_mut(self.x, y).0 = color;
        }
        self.x = self.x.saturating_add(1);
    }

    fn put_index(&mut self, index: u8) {
        self.put(color(self.header, index.into()));
    }

    fn is_complete(&self) -> bool {
        let last = self.header.height - 1;
        self.stored_row > last || (self.stored_row == last && self.x >= self.header.width)
    }
}

/// Run lengths (Windows GDI, "Bitmap Compression"): a count and a color, or 0 and an escape. Pixels that
/// are skipped have the first color of the palette, as in Pillow.
fn run_lengths(header: &Header<'_>) -> Option<DynamicImage> {
    let image = RgbImage::from_pixel(header.width, header.height, color(header, 0).into());
    let mut pen = Pen { header, image, x: 0, stored_row: 0 };
    let mut rest = header.pixels;
    loop {
        match rest {
            [0, 0, tail @ ..] => {
                pen.x = 0;
                pen.stored_row = pen.stored_row.saturating_add(1);
                rest = tail;
            }
            [0, 1, ..] => break,
            [0, 2, right, up, tail @ ..] => {
                pen.x = pen.x.saturating_add((*right).into());
                pen.stored_row = pen.stored_row.saturating_add((*up).into());
                rest = tail;
            }
            [0, count @ 3..=u8::MAX, tail @ ..] => rest = literal(&mut pen, *count, tail)?,
            [count @ 1..=u8::MAX, tail @ ..] => rest = run(&mut pen, *count, tail)?,
            // Without an end, all pixels must be there.
            _ if pen.is_complete() => break,
            _ => return None,
        }
    }
    Some(pen.image.into())
}

fn run<'a>(pen: &mut Pen<'_>, count: u8, tail: &'a [u8]) -> Option<&'a [u8]> {
    if pen.header.coding == Coding::RunLength24 {
        let ([blue, green, red], rest) = tail.split_first_chunk()?;
        (0..count).for_each(|_| pen.put([*red, *green, *blue]));
        return Some(rest);
    }
    let (&index, rest) = tail.split_first()?;
    for at in 0..count {
        pen.put_index(match pen.header.coding {
            Coding::RunLength4 if at % 2 == 0 => index >> 4,
            Coding::RunLength4 => index & 0xF,
            _ => index,
        });
    }
    Some(rest)
}

/// Pixels that are not repeated; they are padded to an even number of bytes.
fn literal<'a>(pen: &mut Pen<'_>, count: u8, tail: &'a [u8]) -> Option<&'a [u8]> {
    let count = usize::from(count);
    let length = match pen.header.coding {
        Coding::RunLength4 => count.div_ceil(2),
        Coding::RunLength24 => 3 * count,
        _ => count,
    };
    let (bytes, _) = tail.split_at_checked(length)?;
    match pen.header.coding {
        Coding::RunLength24 => {
            for [blue, green, red] in bytes.as_chunks::<3>().0 {
                pen.put([*red, *green, *blue]);
            }
        }
        Coding::RunLength4 => {
            let halves = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xF]);
            halves.take(count).for_each(|index| pen.put_index(index));
        }
        _ => bytes.iter().for_each(|index| pen.put_index(*index)),
    }
    Some(tail.get(length.next_multiple_of(2)..).unwrap_or_default())
}
