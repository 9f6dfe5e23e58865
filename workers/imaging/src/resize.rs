//! Resizing by Lanczos3, the convolutions by `fast_image_resize`.

use std::{f64::consts::PI, sync::LazyLock};

use fast_image_resize::{
    Filter, FilterType, PixelType, ResizeAlg, ResizeOptions,
    images::{Image, ImageRef},
};
use image::DynamicImage;
use safelight_domain::{Failure, Size};

use super::{bug, geometry::Region};

/// How far Lanczos3 reaches, in pixels of the smaller picture.
const REACH: f64 = 3.0;

/// Places at which Lanczos3 is known, per pixel.
const PLACES: f64 = 1024.0;

/// Memory kept for the next picture at most, in bytes: enough for a common photograph.
const KEPT: usize = 16 << 20;

/// `sinc(x) · sinc(x / 3)` for `x` from 0 on. Sines cost a tenth of the whole work otherwise: their
/// weights are computed anew for each direction, plane and size.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a small positive number
static LANCZOS3: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    let places = 0..=(REACH * PLACES) as u32 + 1;
    places.map(|place| f64::from(place) / PLACES).map(|x| sinc(x) * sinc(x / REACH)).collect()
});

/// Lanczos3 between the known places by a straight line, off by less than a millionth.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within the table
fn lanczos3(x: f64) -> f64 {
    let place = x.abs() * PLACES;
    if place >= REACH * PLACES {
        return 0.0;
    }
    let (before, share) = (place as usize, place.fract());
    LANCZOS3[before] + (LANCZOS3[before + 1] - LANCZOS3[before]) * share
}

/// A plane of samples without gaps, and its size.
pub(super) type Plane<T> = (T, Size);

/// Resizes one picture after the other in the same memory.
pub(super) struct Resizer {
    convolution: fast_image_resize::Resizer,
    algorithm: ResizeAlg,
    /// Memory that nothing is in just now.
    spare: Vec<Vec<u8>>,
}

impl Resizer {
    /// Fails only if the filter is refused.
    pub fn new() -> Result<Self, Failure> {
        let filter = Filter::new("Lanczos3", lanczos3, REACH).map_err(bug)?;
        let algorithm = ResizeAlg::Convolution(FilterType::Custom(filter));
        let convolution = fast_image_resize::Resizer::new();
        Ok(Self { convolution, algorithm, spare: Vec::new() })
    }

    /// Memory for so many bytes, with whatever was in it.
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let fitting = self.spare.iter().position(|spare| spare.capacity() >= length);
        let mut memory = match fitting {
            Some(at) => self.spare.swap_remove(at),
            None => Vec::with_capacity(length),
        };
        memory.resize(length, 0);
        memory
    }

    /// Keeps memory for [`Resizer::take`].
    pub fn give(&mut self, memory: Vec<u8>) {
        let kept: usize = self.spare.iter().map(Vec::capacity).sum();
        if memory.capacity() > 0 && kept + memory.capacity() <= KEPT {
            self.spare.push(memory);
        }
    }

    /// A part of a picture in another size; colours are multiplied by alpha meanwhile.
    pub fn image(
        &mut self,
        source: &DynamicImage,
        region: Region,
        size: Size,
    ) -> Result<DynamicImage, Failure> {
        let Region { left, top, width, height } = region;
        // Rounding may have carried it a hair beyond the edge.
        let width = width.min(f64::from(source.width()) - left);
        let height = height.min(f64::from(source.height()) - top);
        let options = ResizeOptions::new().resize_alg(self.algorithm);
        let options = options.crop(left, top, width, height);
        let mut target = DynamicImage::new(size.width, size.height, source.color());
        self.convolution.resize(source, &mut target, &options).map_err(bug)?;
        Ok(target)
    }

    /// A part of some planes of one size in another size, one after the other, written in rows that
    /// are `stride` samples apart. What lies between them is left alone.
    ///
    /// Samples that stand one above the other are summed up much faster than those side by side,
    /// where there is one to a pixel: so rows are resized as columns, between two transpositions.
    pub fn planes(
        &mut self,
        (source, from): Plane<&[u8]>,
        region: Region,
        size: Size,
        target: &mut [u8],
        stride: usize,
    ) -> Result<(), Failure> {
        let count = source.len() / from.len();
        let lower = Size { width: from.width, height: size.height };
        let mut rows = self.take(lower.len() * count);
        let down = (region.top, region.height);
        for (from_plane, to) in
            source.chunks_exact(from.len()).zip(rows.chunks_exact_mut(lower.len()))
        {
            self.columns((from_plane, from), down, (to, lower))?;
        }
        // All planes as one from here on.
        let high = u32::try_from(lower.height as usize * count).map_err(bug)?;
        let lying = Size { height: high, ..lower };
        let standing = Size { width: high, height: lower.width };
        let mut columns = self.take(standing.len());
        transpose((&rows, lying), &mut columns, high as usize);
        let narrow = Size { width: high, height: size.width };
        rows.resize(narrow.len(), 0);
        self.columns((&columns, standing), (region.left, region.width), (&mut rows, narrow))?;
        transpose((&rows, narrow), target, stride);
        self.give(rows);
        self.give(columns);
        Ok(())
    }

    /// Resizes `length` rows from `start` on to another number of rows.
    fn columns(
        &mut self,
        (source, from): Plane<&[u8]>,
        (start, length): (f64, f64),
        (target, to): Plane<&mut [u8]>,
    ) -> Result<(), Failure> {
        let source = ImageRef::new(from.width, from.height, source, PixelType::U8).map_err(bug)?;
        let mut target =
            Image::from_slice_u8(to.width, to.height, target, PixelType::U8).map_err(bug)?;
        // Rounding may have carried it a hair beyond the edge.
        let length = length.min(f64::from(from.height) - start);
        let options = ResizeOptions::new().resize_alg(self.algorithm);
        let options = options.crop(0.0, start, from.width.into(), length);
        self.convolution.resize(&source, &mut target, &options).map_err(bug)
    }
}

/// Pixels of a square that is transposed in registers.
const SQUARE: usize = 8;

/// Columns whose lines fit the processor's nearest cache.
const NEAR: usize = 256;

/// Rows become columns, which are `stride` samples apart.
fn transpose((source, size): Plane<&[u8]>, target: &mut [u8], stride: usize) {
    let (width, height) = (size.width as usize, size.height as usize);
    let whole = |side: usize| side - side % SQUARE;
    // Eight rows at a time become eight bytes of each column. Not too many columns at once, so that
    // their lines are still in the nearest cache when the next eight bytes come.
    for tile in (0..whole(width)).step_by(NEAR) {
        for y in (0..whole(height)).step_by(SQUARE) {
            let rows = &source[y * width..(y + SQUARE) * width];
            for x in (tile..whole(width).min(tile + NEAR)).step_by(SQUARE) {
                let mut square = [0; SQUARE];
                for (row, eight) in square.iter_mut().enumerate() {
                    let bytes = rows[row * width + x..].first_chunk();
                    *eight = u64::from_le_bytes(*bytes.unwrap_or(&[0; SQUARE]));
                }
                transpose_square(&mut square);
                for (column, eight) in square.iter().enumerate() {
                    let at = (x + column) * stride + y;
                    target[at..at + SQUARE].copy_from_slice(&eight.to_le_bytes());
                }
            }
        }
    }
    let mut one = |x: usize, y: usize| target[x * stride + y] = source[y * width + x];
    for y in whole(height)..height {
        (0..width).for_each(|x| one(x, y));
    }
    for x in whole(width)..width {
        (0..whole(height)).for_each(|y| one(x, y));
    }
}

/// Eight rows of eight bytes, transposed by swapping ever larger blocks across the diagonal
/// (Warren, Hacker's Delight, section 7-3, with bytes for bits).
#[inline]
fn transpose_square(rows: &mut [u64; SQUARE]) {
    let mut swap = |upper: usize, lower: usize, bits: u32, mask: u64| {
        let swapped = ((rows[upper] >> bits) ^ rows[lower]) & mask;
        rows[upper] ^= swapped << bits;
        rows[lower] ^= swapped;
    };
    for (upper, lower) in [(0, 1), (2, 3), (4, 5), (6, 7)] {
        swap(upper, lower, 8, 0x00FF_00FF_00FF_00FF);
    }
    for (upper, lower) in [(0, 2), (1, 3), (4, 6), (5, 7)] {
        swap(upper, lower, 16, 0x0000_FFFF_0000_FFFF);
    }
    for (upper, lower) in [(0, 4), (1, 5), (2, 6), (3, 7)] {
        swap(upper, lower, 32, 0x0000_0000_FFFF_FFFF);
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // made samples are small numbers
mod tests {
    use super::*;

    #[test]
    fn the_table_is_lanczos3() {
        for step in 0..=31_000 {
            let x = f64::from(step) / 10_000.0;
            let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
            let exact = if x < 3.0 { sinc(x) * sinc(x / 3.0) } else { 0.0 };
            assert!((lanczos3(x) - exact).abs() < 1e-6, "{x}");
            assert!((lanczos3(-x) - exact).abs() < 1e-6, "-{x}");
        }
    }

    #[test]
    fn rows_become_columns() {
        for (width, height) in [(8, 8), (1, 9), (17, 1), (64, 24), (23, 45)] {
            let size = Size { width, height };
            let source: Vec<u8> = (0..size.len()).map(|at| (at * 7 % 251) as u8).collect();
            let mut target = vec![0; source.len()];
            transpose((&source, size), &mut target, height as usize);
            for (at, byte) in source.iter().enumerate() {
                let (x, y) = (at % width as usize, at / width as usize);
                assert_eq!(target[x * height as usize + y], *byte, "{width}x{height}: {x}, {y}");
            }
        }
    }

    #[test]
    fn planes_are_resized_as_images_are() {
        let from = Size { width: 61, height: 47 };
        let region = Region { left: 5.5, top: 3.25, width: 50.0, height: 40.0 };
        let size = Size { width: 33, height: 18 };
        let mut resizer = Resizer::new().expect("a filter");
        let samples: Vec<u8> = (0..2 * from.len()).map(|at| (at * at % 253) as u8).collect();
        let mut small = vec![0; 2 * size.len()];
        let stride = size.width as usize;
        resizer.planes((&samples, from), region, size, &mut small, stride).expect("resized");
        let planes = samples.chunks_exact(from.len()).zip(small.chunks_exact(size.len()));
        for (plane, resized) in planes {
            let grey = image::GrayImage::from_raw(from.width, from.height, plane.to_vec());
            let grey = DynamicImage::from(grey.expect("enough samples"));
            let expected = resizer.image(&grey, region, size).expect("resized");
            let worst = expected.as_bytes().iter().zip(resized).map(|(a, b)| a.abs_diff(*b)).max();
            // Rounded in between, the other way round.
            assert!(worst <= Some(2), "{worst:?}");
        }
    }

    #[test]
    fn memory_is_used_again_and_not_hoarded() {
        let mut resizer = Resizer::new().expect("a filter");
        let memory = resizer.take(1000);
        let place = memory.as_ptr();
        resizer.give(memory);
        let again = resizer.take(900);
        assert_eq!(again.as_ptr(), place);
        resizer.give(Vec::with_capacity(KEPT + 1));
        assert!(resizer.spare.is_empty());
    }
}
