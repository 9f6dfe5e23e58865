//! 8-bit luma and chroma to RGB in whole numbers: the common case, at a fraction of the cost of `convert`.
//!
//! All sums fit 16 bits, so that the compiler handles eight pixels at once.

use image::RgbImage;

use super::{
    coding::{Chroma, Siting, neighbor},
    error::HeifError::{self, Corrupt},
    matrix::{Matrix, WholeMatrix},
    planes::{Planes, Samples, reserve},
};

/// What a chroma sample is multiplied by to be interpolated without fractions.
const CHROMA_UNITS: u8 = 16;

/// Converts planes of 8 bits to RGB. `None` for other planes and matrices.
pub(super) fn to_rgb(
    color: &Planes,
    matrix: &Matrix,
    siting: Siting,
) -> Result<Option<RgbImage>, HeifError> {
    let [Samples::Bytes(luma), Samples::Bytes(blue), Samples::Bytes(red)] = &*color.samples else {
        return Ok(None);
    };
    let Some(matrix) = matrix.in_whole_numbers() else { return Ok(None) };
    let (width, height) = (color.size.0 as usize, color.size.1 as usize);
    if width == 0 || height == 0 {
        return Err(Corrupt);
    }
    let mut pixels = reserve(width * height * 3)?;
    pixels.resize(width * height * 3, 0);
    let mut chroma = [vec![0; width], vec![0; width]];
    let mut near = vec![0; color.plane_size(1).0];
    let mut row = [vec![0; width], vec![0; width], vec![0; width]];
    for (y, (luma, out)) in
        luma.chunks_exact(width).zip(pixels.chunks_exact_mut(width * 3)).enumerate()
    {
        for (plane, chroma) in [blue, red].into_iter().zip(&mut chroma) {
            if color.chroma == Chroma::Full {
                let samples = plane[y * width..].iter();
                chroma.iter_mut().zip(samples).for_each(|(to, from)| {
                    *to = i16::from(*from) * i16::from(CHROMA_UNITS);
                });
            } else {
                add_rows(plane, color, y, siting, &mut near);
                widen(&near, chroma, siting.is_left());
            }
        }
        apply(matrix, luma, &chroma, &mut row);
        let colors = row[0].iter().zip(&row[1]).zip(&row[2]);
        for (pixel, ((red, green), blue)) in out.as_chunks_mut::<3>().0.iter_mut().zip(colors) {
            *pixel = [*red, *green, *blue];
        }
    }
    RgbImage::from_raw(color.size.0, color.size.1, pixels).ok_or(Corrupt).map(Some)
}

/// Four times the chroma at row `y` of the picture, between two rows of the plane.
fn add_rows(plane: &[u8], color: &Planes, y: usize, siting: Siting, sums: &mut [i16]) {
    let row = |at: usize| &plane[at * sums.len()..][..sums.len()];
    if color.chroma != Chroma::Quarter {
        let row = row(y);
        sums.iter_mut().zip(row).for_each(|(sum, near)| *sum = i16::from(*near) * 4);
        return;
    }
    let (other, quarters) = neighbor(y, color.plane_size(1).1, siting.is_top());
    let (near, far) = (row(y / 2), row(other));
    let quarters = i16::from(quarters);
    for ((sum, near), far) in sums.iter_mut().zip(near).zip(far) {
        *sum = i16::from(*near) * (4 - quarters) + i16::from(*far) * quarters;
    }
}

/// Doubles the columns of a row of [`add_rows`] by linear interpolation, to units of [`CHROMA_UNITS`].
fn widen(from: &[i16], to: &mut [i16], is_left: bool) {
    let (even, odd) = if is_left { (0, 2) } else { (1, 1) };
    let mix = |near: i16, far: i16, quarters: i16| near * (4 - quarters) + far * quarters;
    let ([first, ..], [.., last]) = (from, from) else { return };
    let Some((left, to)) = to.split_first_mut() else { return };
    *left = mix(*first, *first, even);
    // The pairs between the middles of neighbors, and at the end what has no neighbor.
    let (between, rest) = to.as_chunks_mut::<2>();
    let neighbors = from.iter().zip(from.get(1..).unwrap_or_default());
    for ([right, left], (near, next)) in between.iter_mut().zip(neighbors) {
        (*right, *left) = (mix(*near, *next, odd), mix(*next, *near, even));
    }
    if let [right] = rest {
        *right = mix(*last, *last, odd);
    }
}

/// Luma of 8 bits and chroma in units of [`CHROMA_UNITS`] to red, green and blue.
fn apply(matrix: WholeMatrix, luma: &[u8], [blue, red]: &[Vec<i16>; 2], row: &mut [Vec<u8>; 3]) {
    // The upper half of a product, as one instruction for eight of them.
    let scaled = |value: i16, factor: i16| ((i32::from(value) * i32::from(factor)) >> 16) as i16;
    // To samples times 128, so that the product with a factor times 8192 is a sample times 16.
    let no_color = 128 * i16::from(CHROMA_UNITS);
    #[expect(clippy::cast_sign_loss, reason = "clamped before")]
    let byte = |sum: i16| ((sum + 8) >> 4).clamp(0, 255) as u8;
    let [to_red, to_green, to_blue] = row;
    let out = to_red.iter_mut().zip(to_green).zip(to_blue);
    for (((r, g), b), ((y, cb), cr)) in out.zip(luma.iter().zip(blue).zip(red)) {
        let y = scaled((i16::from(*y) - matrix.black) * 128, matrix.luma);
        let (cb, cr) = ((*cb - no_color) * 8, (*cr - no_color) * 8);
        *r = byte(y + scaled(cr, matrix.red));
        *g = byte(y - scaled(cb, matrix.green[0]) - scaled(cr, matrix.green[1]));
        *b = byte(y + scaled(cb, matrix.blue));
    }
}
