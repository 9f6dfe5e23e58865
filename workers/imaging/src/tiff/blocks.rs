//! YCbCr without JPEG (TIFF 6.0, section 21): blocks of luma samples that share their chroma samples.

use super::directory::{Directory, tag};

/// Expands rows of blocks to rows of pixels with three samples each. Chroma is repeated, as in libtiff.
pub(super) fn expand(
    blocks: &[u8],
    width: usize,
    height: usize,
    [across, down]: [u32; 2],
) -> Vec<u8> {
    let (across, down) = (across as usize, down as usize);
    let size = across * down + 2;
    let row_bytes = width.div_ceil(across) * size;
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        let row = &blocks[y / down * row_bytes..][..row_bytes];
        for x in 0..width {
            let block = &row[x / across * size..][..size];
            let luma = block[y % down * across + x % across];
            pixels.extend_from_slice(&[luma, block[size - 2], block[size - 1]]);
        }
    }
    pixels
}

/// Converts YCbCr to RGB in place, by the coefficients and the range of the page.
pub(super) fn to_rgb(samples: &mut [u8], page: &Directory<'_>) {
    let numbers = |tag, defaults: &[f64]| -> Vec<f64> {
        let number = |(at, default): (usize, &f64)| {
            let found = page.field(tag).and_then(|field| field.number(at));
            found.filter(|number| number.is_finite()).unwrap_or(*default)
        };
        defaults.iter().enumerate().map(number).collect()
    };
    // The weights of ITU-R BT.601.
    let weights = numbers(tag::YCBCR_COEFFICIENTS, &[0.299, 0.587, 0.114]);
    let range = numbers(tag::REFERENCE_BLACK_WHITE, &[0.0, 255.0, 128.0, 255.0, 128.0, 255.0]);
    let (red_weight, green_weight, blue_weight) = (weights[0], weights[1], weights[2]);
    let full = |code: u8, black: f64, white: f64, range: f64| {
        let width = white - black;
        let width = if width == 0.0 { 1.0 } else { width };
        (f64::from(code) - black) * range / width
    };
    for pixel in samples.as_chunks_mut::<3>().0 {
        let y = full(pixel[0], range[0], range[1], 255.0);
        let blue_chroma = full(pixel[1], range[2], range[3], 127.0);
        let red_chroma = full(pixel[2], range[4], range[5], 127.0);
        let red = red_chroma * (2.0 - 2.0 * red_weight) + y;
        let blue = blue_chroma * (2.0 - 2.0 * blue_weight) + y;
        let green = if green_weight == 0.0 {
            y
        } else {
            (y - blue_weight * blue - red_weight * red) / green_weight
        };
        *pixel = [red, green, blue].map(level);
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // clamped
fn level(value: f64) -> u8 {
    value.clamp(0.0, 255.0).round() as u8
}
