//! Planes to 8-bit pixels.

use image::{DynamicImage, GrayImage, RgbImage, RgbaImage};

use super::{
    bytes,
    coding::{Chroma, Cicp, Siting, neighbor},
    error::HeifError::{self, Corrupt},
    matrix::Matrix,
    planes::{Planes, reserve},
};
use crate::{hdr::ToneMap, srgb::byte};

/// What to do with a picture's planes.
pub(crate) struct Conversion<'a> {
    /// How samples map to colors.
    pub cicp: Cicp,
    pub siting: Siting,
    /// For high dynamic range: to sRGB.
    pub tone_map: Option<&'a ToneMap>,
    pub alpha: Option<AlphaPlane<'a>>,
}

/// The plane that holds alpha.
pub(crate) struct AlphaPlane<'a> {
    /// As large as the picture.
    pub planes: &'a Planes,
    pub full_range: bool,
    /// Whether the colors are multiplied by it.
    pub premultiplied: bool,
}

impl Conversion<'_> {
    /// Converts to gray, RGB, or RGBA if there is alpha.
    pub fn apply(&self, color: &Planes) -> Result<DynamicImage, HeifError> {
        if self.tone_map.is_none()
            && self.alpha.is_none()
            && let Some(image) = bytes::to_rgb(color, &Matrix::new(color, self.cicp)?, self.siting)?
        {
            return Ok(image.into());
        }
        self.in_floats(color)
    }

    /// Converts samples of any depth, row by row.
    pub(super) fn in_floats(&self, color: &Planes) -> Result<DynamicImage, HeifError> {
        let (width, height) = color.size;
        let gray = color.chroma == Chroma::None && self.tone_map.is_none();
        let channels = match (&self.alpha, gray) {
            (Some(_), _) => 4,
            (None, true) => 1,
            (None, false) => 3,
        };
        let matrix = Matrix::new(color, self.cicp)?;
        let mut pixels = reserve(width as usize * height as usize * channels)?;
        let mut rows = Rows::new(color, self.siting);
        let mut alpha = vec![1.0; width as usize];
        for y in 0..height as usize {
            rows.read(y);
            matrix.apply(rows.row.each_mut().map(Vec::as_mut_slice));
            if let Some(plane) = &self.alpha {
                plane.read_row(y, &mut alpha);
                if plane.premultiplied {
                    rows.row.iter_mut().for_each(|row| divide(row, &alpha));
                }
            }
            if let Some(tone_map) = self.tone_map {
                tone_map.apply(rows.row.each_mut().map(Vec::as_mut_slice));
            }
            write_row(&mut pixels, &rows.row, &alpha, channels);
        }
        match channels {
            1 => GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8),
            3 => RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8),
            _ => RgbaImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgba8),
        }
        .ok_or(Corrupt)
    }
}

impl AlphaPlane<'_> {
    /// Reads a row of alpha, 0 to 1.
    fn read_row(&self, y: usize, out: &mut [f32]) {
        let Some(samples) = self.planes.samples.first() else { return };
        samples.read_row(y, out);
        let unit = f32::from(1_u16 << (self.planes.depth - 8));
        let (low, range) =
            if self.full_range { (0.0, self.planes.most()) } else { (16.0 * unit, 219.0 * unit) };
        for alpha in out {
            *alpha = ((*alpha - low) / range).clamp(0.0, 1.0);
        }
    }
}

/// Divides colors by alpha.
fn divide(colors: &mut [f32], alpha: &[f32]) {
    for (color, alpha) in colors.iter_mut().zip(alpha) {
        if *alpha > 0.0 {
            *color = (*color / alpha).min(1.0);
        }
    }
}

fn write_row(
    pixels: &mut Vec<u8>,
    [red, green, blue]: &[Vec<f32>; 3],
    alpha: &[f32],
    channels: usize,
) {
    let colors = red.iter().zip(green).zip(blue);
    match channels {
        1 => pixels.extend(red.iter().map(|luma| byte(*luma))),
        3 => pixels.extend(colors.flat_map(|((r, g), b)| [byte(*r), byte(*g), byte(*b)])),
        _ => pixels.extend(
            colors.zip(alpha).flat_map(|(((r, g), b), a)| [byte(*r), byte(*g), byte(*b), byte(*a)]),
        ),
    }
}

/// Reads rows of luma, and of chroma at the resolution of luma.
struct Rows<'a> {
    planes: &'a Planes,
    siting: Siting,
    /// One row of each plane, as wide as the picture.
    row: [Vec<f32>; 3],
    /// Two rows of a chroma plane.
    chroma: [Vec<f32>; 2],
}

impl<'a> Rows<'a> {
    fn new(planes: &'a Planes, siting: Siting) -> Self {
        let row = || vec![0.0; planes.size.0 as usize];
        let chroma = || vec![0.0; planes.plane_size(1).0];
        Self { planes, siting, row: [row(), row(), row()], chroma: [chroma(), chroma()] }
    }

    fn read(&mut self, y: usize) {
        for (plane, samples) in self.planes.samples.iter().enumerate() {
            let (across, down) = if plane == 0 { (1, 1) } else { self.planes.chroma.steps() };
            if across == 1 {
                samples.read_row(y, &mut self.row[plane]);
                continue;
            }
            let [near, far] = &mut self.chroma;
            let rows = self.planes.plane_size(plane).1;
            samples.read_row(y / down, near);
            if down == 2 {
                let (other, quarters) = neighbor(y, rows, self.siting.is_top());
                if quarters > 0 && other != y / 2 {
                    samples.read_row(other, far);
                    let share = f32::from(quarters) / 4.0;
                    for (near, far) in near.iter_mut().zip(far.iter()) {
                        *near += (*far - *near) * share;
                    }
                }
            }
            widen(near, &mut self.row[plane], self.siting.is_left());
        }
    }
}

/// Doubles the columns of a row by linear interpolation.
fn widen(from: &[f32], to: &mut [f32], is_left: bool) {
    let Some((&first, &last)) = from.first().zip(from.last()) else { return };
    let (even, odd) = if is_left { (0.0, 0.5) } else { (0.25, 0.25) };
    let before = std::iter::once(&first).chain(from);
    let after = from.get(1..).unwrap_or_default().iter().chain(std::iter::once(&last));
    let (pairs, rest) = to.as_chunks_mut::<2>();
    let mut samples = from.iter().zip(before).zip(after);
    for (pair, ((at, before), after)) in pairs.iter_mut().zip(samples.by_ref()) {
        *pair = [at + (before - at) * even, at + (after - at) * odd];
    }
    if let ([single], Some(((at, before), _))) = (rest, samples.next()) {
        *single = at + (before - at) * even;
    }
}

#[cfg(test)]
mod tests {
    use image::DynamicImage;

    use super::*;
    use crate::heif::planes::Samples;

    /// Planes of arbitrary samples, the same at each run.
    fn planes(size: (u32, u32), chroma: Chroma) -> Planes {
        let cicp = Cicp { primaries: 1, transfer: 13, matrix: 6, full_range: true };
        let mut planes = Planes { size, chroma, depth: 8, cicp, samples: Vec::new() };
        let mut state = 1_u32;
        for plane in 0..3 {
            let (width, height) = planes.plane_size(plane);
            let next = |_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            };
            planes.samples.push(Samples::Bytes((0..width * height).map(next).collect()));
        }
        planes
    }

    fn matrix_of(planes: &Planes, cicp: Cicp) -> Matrix {
        Matrix::new(planes, cicp).expect("a matrix")
    }

    #[test]
    fn whole_numbers_give_what_floating_point_gives() {
        let mut sizes: Vec<(u32, u32)> = (1..=40).map(|width| (width, 3)).collect();
        sizes.extend([(1, 1), (2, 2), (5, 33), (64, 17), (131, 40)]);
        for size in sizes {
            for chroma in [Chroma::Quarter, Chroma::Half, Chroma::Full] {
                for siting in [Siting::Center, Siting::Left, Siting::TopLeft] {
                    for (matrix, full_range) in [(6, true), (1, false), (9, true)] {
                        let color = planes(size, chroma);
                        let cicp = Cicp { matrix, full_range, ..color.cicp };
                        let conversion = Conversion { cicp, siting, tone_map: None, alpha: None };
                        let exact = conversion.in_floats(&color).map(DynamicImage::into_rgb8);
                        let exact = exact.expect("pixels");
                        let found = bytes::to_rgb(&color, &matrix_of(&color, cicp), siting)
                            .expect("no error")
                            .expect("8 bits");
                        let differences =
                            found.iter().zip(exact.iter()).map(|(a, b)| a.abs_diff(*b));
                        let worst = differences.max().unwrap_or(0);
                        assert!(worst <= 1, "{size:?} {chroma:?} {siting:?} {matrix}: {worst}");
                    }
                }
            }
        }
    }

    #[test]
    fn planes_without_pixels_are_corrupt() {
        for size in [(0, 3), (3, 0), (0, 0)] {
            for chroma in [Chroma::Quarter, Chroma::Half, Chroma::Full] {
                let color = planes(size, chroma);
                let found = bytes::to_rgb(&color, &matrix_of(&color, color.cicp), Siting::Center);
                assert_eq!(found.err(), Some(Corrupt), "{size:?} {chroma:?}");
            }
        }
    }

    #[test]
    fn other_planes_are_left_to_the_exact_conversion() {
        let color = planes((4, 4), Chroma::Full);
        for matrix in [0, 8] {
            let matrix = matrix_of(&color, Cicp { matrix, ..color.cicp });
            let found = bytes::to_rgb(&color, &matrix, Siting::Center);
            assert!(found.expect("no error").is_none(), "{matrix:?}");
        }
        let words = Samples::Words(vec![0; 16]);
        let deep = Planes { samples: vec![words], depth: 10, ..planes((4, 4), Chroma::None) };
        let matrix = matrix_of(&deep, deep.cicp);
        assert!(bytes::to_rgb(&deep, &matrix, Siting::Center).expect("no error").is_none());
    }
}
