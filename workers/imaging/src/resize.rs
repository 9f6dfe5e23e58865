//! Resizing with Lanczos3; `fast_image_resize` does the convolutions.

use std::{f64::consts::PI, sync::LazyLock};

use fast_image_resize::{
    Filter, FilterType, PixelTrait, ResizeAlg, ResizeOptions,
    images::{TypedImage, TypedImageRef},
    pixels::{U8, U8x3, U8x4},
};
use image::DynamicImage;
use safelight_domain::{Failure, Size};

use crate::{failure::bug, geometry::Region};

/// The radius of the Lanczos3 kernel, in pixels of the smaller picture.
const LANCZOS_RADIUS: f64 = 3.0;

/// Entries per pixel in the table of Lanczos3.
const TABLE_STEPS: f64 = 1024.0;

/// Maximum memory that is kept for the next picture, in bytes: enough for an average photo.
const MAX_SPARE_BYTES: usize = 16 << 20;

/// `sinc(x) · sinc(x / 3)` for `x` from 0 to 3. `fast_image_resize` computes the weights again for each
/// direction, plane and size, and without a table the sines take a tenth of all the time.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a small positive number
static LANCZOS3: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
    let places = 0..=(LANCZOS_RADIUS * TABLE_STEPS) as u32 + 1;
    places
        .map(|place| f64::from(place) / TABLE_STEPS)
        .map(|x| sinc(x) * sinc(x / LANCZOS_RADIUS))
        .collect()
});

/// Interpolates the table linearly. The error is less than a millionth.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within the table
fn lanczos3(x: f64) -> f64 {
    let place = x.abs() * TABLE_STEPS;
    if place >= LANCZOS_RADIUS * TABLE_STEPS {
        return 0.0;
    }
    let (before, share) = (place as usize, place.fract());
    LANCZOS3[before] + (LANCZOS3[before + 1] - LANCZOS3[before]) * share
}

/// A plane of samples without padding, and its size.
pub(super) type Plane<T> = (T, Size);

/// Resizes pictures and reuses memory between them.
pub(super) struct Resizer {
    convolution: fast_image_resize::Resizer,
    algorithm: ResizeAlg,
    /// Unused buffers.
    spare: Vec<Vec<u8>>,
}

impl Resizer {
    /// Fails only if `fast_image_resize` rejects the filter.
    pub fn new() -> Result<Self, Failure> {
        let filter = Filter::new("Lanczos3", lanczos3, LANCZOS_RADIUS).map_err(bug)?;
        let algorithm = ResizeAlg::Convolution(FilterType::Custom(filter));
        let convolution = fast_image_resize::Resizer::new();
        Ok(Self { convolution, algorithm, spare: Vec::new() })
    }

    /// A buffer of `length` bytes with arbitrary contents.
    pub fn buffer(&mut self, length: usize) -> Vec<u8> {
        let fitting = self.spare.iter().position(|spare| spare.capacity() >= length);
        let mut memory = match fitting {
            Some(at) => self.spare.swap_remove(at),
            None => Vec::with_capacity(length),
        };
        memory.resize(length, 0);
        memory
    }

    /// Keeps a buffer for [`Resizer::buffer`].
    pub fn recycle(&mut self, memory: Vec<u8>) {
        let kept: usize = self.spare.iter().map(Vec::capacity).sum();
        if memory.capacity() > 0 && kept + memory.capacity() <= MAX_SPARE_BYTES {
            self.spare.push(memory);
        }
    }

    /// Resizes a part of a picture, with colors multiplied by alpha meanwhile.
    pub fn image(
        &mut self,
        source: &DynamicImage,
        region: Region,
        size: Size,
    ) -> Result<DynamicImage, Failure> {
        let from = Size { width: source.width(), height: source.height() };
        let mut target = DynamicImage::new(size.width, size.height, source.color());
        let samples = source.as_bytes();
        match &mut target {
            DynamicImage::ImageLuma8(to) => {
                self.convolve::<U8>((samples, from), region, (&mut **to, size))
            }
            DynamicImage::ImageRgb8(to) => {
                self.convolve::<U8x3>((samples, from), region, (&mut **to, size))
            }
            DynamicImage::ImageRgba8(to) => {
                self.convolve::<U8x4>((samples, from), region, (&mut **to, size))
            }
            _ => Err(bug("neither gray nor RGB nor RGBA")),
        }?;
        Ok(target)
    }

    /// Resizes a part of several planes of the same size that follow each other. Writes rows that start
    /// `stride` samples apart and does not touch the padding between them.
    ///
    /// With one sample per pixel, vertical convolution is much faster than horizontal convolution. So
    /// widths are resized as heights, between two transpositions.
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
        let mut rows = self.buffer(lower.len() * count);
        let down = (region.top, region.height);
        for (from_plane, to) in
            source.chunks_exact(from.len()).zip(rows.chunks_exact_mut(lower.len()))
        {
            self.resize_rows((from_plane, from), down, (to, lower))?;
        }
        // From here on, all planes are treated as one.
        let total_rows = u32::try_from(lower.height as usize * count).map_err(bug)?;
        let stacked = Size { height: total_rows, ..lower };
        let transposed = Size { width: total_rows, height: lower.width };
        let mut columns = self.buffer(transposed.len());
        transpose((&rows, stacked), &mut columns, total_rows as usize);
        let resized = Size { width: total_rows, height: size.width };
        rows.resize(resized.len(), 0);
        self.resize_rows(
            (&columns, transposed),
            (region.left, region.width),
            (&mut rows, resized),
        )?;
        transpose((&rows, resized), target, stride);
        self.recycle(rows);
        self.recycle(columns);
        Ok(())
    }

    /// Resizes the `length` rows from `start` to another number of rows.
    fn resize_rows(
        &mut self,
        (source, from): Plane<&[u8]>,
        (start, length): (f64, f64),
        (target, to): Plane<&mut [u8]>,
    ) -> Result<(), Failure> {
        let region = Region { left: 0.0, top: start, width: f64::from(from.width), height: length };
        self.convolve::<U8>((source, from), region, (target, to))
    }

    /// Resizes a part of a picture with pixels of one type. (The function of the library that takes any
    /// type at run time costs the build the code of all of them.)
    fn convolve<P: PixelTrait>(
        &mut self,
        (source, from): Plane<&[u8]>,
        Region { left, top, width, height }: Region,
        (target, to): Plane<&mut [u8]>,
    ) -> Result<(), Failure> {
        let source =
            TypedImageRef::<P>::from_buffer(from.width, from.height, source).map_err(bug)?;
        let mut target = TypedImage::<P>::from_buffer(to.width, to.height, target).map_err(bug)?;
        // Rounding may have carried it a hair beyond the edge.
        let width = width.min(f64::from(from.width) - left);
        let height = height.min(f64::from(from.height) - top);
        let options = ResizeOptions::new().resize_alg(self.algorithm);
        let options = options.crop(left, top, width, height);
        self.convolution.resize_typed(&source, &mut target, &options).map_err(bug)
    }
}

/// The side of a block that is transposed in registers, in pixels.
const BLOCK: usize = 8;

/// The number of columns whose cache lines fit the L1 cache.
const TILE_COLUMNS: usize = 256;

/// Writes rows as columns. The rows of `target` start `stride` samples apart.
fn transpose((source, size): Plane<&[u8]>, target: &mut [u8], stride: usize) {
    let (width, height) = (size.width as usize, size.height as usize);
    let whole = |side: usize| side - side % BLOCK;
    // Eight rows at a time become eight bytes of each column. The tile limits the number of columns, so
    // that their lines are still in the L1 cache when the next eight bytes follow.
    for tile in (0..whole(width)).step_by(TILE_COLUMNS) {
        for y in (0..whole(height)).step_by(BLOCK) {
            let rows = &source[y * width..(y + BLOCK) * width];
            for x in (tile..whole(width).min(tile + TILE_COLUMNS)).step_by(BLOCK) {
                let mut square = [0; BLOCK];
                for (row, eight) in square.iter_mut().enumerate() {
                    let bytes = rows[row * width + x..].first_chunk();
                    *eight = u64::from_le_bytes(*bytes.unwrap_or(&[0; BLOCK]));
                }
                transpose_square(&mut square);
                for (column, eight) in square.iter().enumerate() {
                    let at = (x + column) * stride + y;
                    target[at..at + BLOCK].copy_from_slice(&eight.to_le_bytes());
                }
            }
        }
    }
    let mut copy_one = |x: usize, y: usize| target[x * stride + y] = source[y * width + x];
    for y in whole(height)..height {
        (0..width).for_each(|x| copy_one(x, y));
    }
    for x in whole(width)..width {
        (0..whole(height)).for_each(|y| copy_one(x, y));
    }
}

/// Transposes eight rows of eight bytes by swapping ever larger blocks across the diagonal (Warren,
/// Hacker's Delight, section 7-3, with bytes instead of bits).
#[inline]
fn transpose_square(rows: &mut [u64; BLOCK]) {
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
#[allow(clippy::cast_possible_truncation)] // generated samples are small
mod tests {
    use super::*;

    #[test]
    fn table_matches_lanczos3() {
        for step in 0..=31_000 {
            let x = f64::from(step) / 10_000.0;
            let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
            let exact = if x < 3.0 { sinc(x) * sinc(x / 3.0) } else { 0.0 };
            assert!((lanczos3(x) - exact).abs() < 1e-6, "{x}");
            assert!((lanczos3(-x) - exact).abs() < 1e-6, "-{x}");
        }
    }

    #[test]
    fn transpose_turns_rows_into_columns() {
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
    fn planes_are_resized_like_images() {
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
            let gray = image::GrayImage::from_raw(from.width, from.height, plane.to_vec());
            let gray = DynamicImage::from(gray.expect("enough samples"));
            let expected = resizer.image(&gray, region, size).expect("resized");
            let worst = expected.as_bytes().iter().zip(resized).map(|(a, b)| a.abs_diff(*b)).max();
            // The order of the directions differs, and so does the rounding between them.
            assert!(worst <= Some(2), "{worst:?}");
        }
    }

    #[test]
    fn resizer_reuses_memory_up_to_bound() {
        let mut resizer = Resizer::new().expect("a filter");
        let memory = resizer.buffer(1000);
        let place = memory.as_ptr();
        resizer.recycle(memory);
        let again = resizer.buffer(900);
        assert_eq!(again.as_ptr(), place);
        resizer.recycle(Vec::with_capacity(MAX_SPARE_BYTES + 1));
        assert!(resizer.spare.is_empty());
    }
}
