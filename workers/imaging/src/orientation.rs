//! Rotates and mirrors pictures, by EXIF orientation.

use fast_transpose::{
    FlipMode, FlopMode, flip_arbitrary, flop_arbitrary, rotate180_arbitrary, transpose_arbitrary,
    transpose_plane,
};
use image::metadata::Orientation;
use safelight_domain::{Failure, Size};

use crate::failure::bug;

/// Whether the orientation exchanges width and height.
pub(super) fn swaps_sides(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}

pub(super) fn oriented_size(Size { width, height }: Size, orientation: Orientation) -> Size {
    if swaps_sides(orientation) {
        Size { width: height, height: width }
    } else {
        Size { width, height }
    }
}

/// Pixels in rows that start `stride` pixels apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<T> {
    pub samples: T,
    pub stride: usize,
}

/// Writes a picture of `size`, rotated or mirrored. Does not touch the padding of rows.
pub(super) fn orient<const N: usize>(
    from: Rows<&[u8]>,
    size: Size,
    orientation: Orientation,
    to: &mut Rows<&mut [u8]>,
) -> Result<(), Failure>
where
    [u8; N]: Default,
{
    let (source, target) = (from.samples.as_chunks::<N>().0, to.samples.as_chunks_mut::<N>().0);
    let (width, height) = (size.width as usize, size.height as usize);
    let (from_stride, to_stride) = (from.stride, to.stride);
    // The library rejects slices with more rows than the picture has.
    let rows = oriented_size(size, orientation).height as usize;
    let source = source.get(..from_stride * height).ok_or_else(|| bug("rows are missing"))?;
    let target = target.get_mut(..to_stride * rows).ok_or_else(|| bug("rows are missing"))?;
    if let Some((flip, flop)) = transposition(orientation) {
        // Only the variant for single bytes uses vector instructions.
        return if N == 1 {
            let (source, target) = (source.as_flattened(), target.as_flattened_mut());
            transpose_plane(source, from_stride, target, to_stride, width, height, flip, flop)
        } else {
            transpose_arbitrary(source, from_stride, target, to_stride, width, height, flip, flop)
        }
        .map_err(bug);
    }
    match orientation {
        Orientation::Rotate180 => {
            rotate180_arbitrary(source, from_stride, target, to_stride, width, height)
        }
        // The library's flip mirrors horizontally, its flop vertically.
        Orientation::FlipHorizontal => {
            flip_arbitrary(source, from_stride, target, to_stride, width, height)
        }
        Orientation::FlipVertical => {
            flop_arbitrary(source, from_stride, target, to_stride, width, height)
        }
        _ => {
            let rows = source.chunks(from_stride.max(1));
            for (to, from) in target.chunks_mut(to_stride.max(1)).zip(rows) {
                to[..width].copy_from_slice(&from[..width]);
            }
            Ok(())
        }
    }
    .map_err(bug)
}

/// An orientation that exchanges width and height in the terms of `fast_transpose`, where `Flop` is a
/// plain transposition and `Flip` starts with the last row.
fn transposition(orientation: Orientation) -> Option<(FlipMode, FlopMode)> {
    match orientation {
        Orientation::Rotate90 => Some((FlipMode::Flip, FlopMode::Flop)),
        Orientation::Rotate270 => Some((FlipMode::NoFlip, FlopMode::NoFlop)),
        Orientation::Rotate90FlipH => Some((FlipMode::NoFlip, FlopMode::Flop)),
        Orientation::Rotate270FlipH => Some((FlipMode::Flip, FlopMode::NoFlop)),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // generated samples are small
mod tests {
    use image::{DynamicImage, GrayImage, RgbImage};

    use super::*;

    fn oriented<const N: usize>(pixels: &[u8], size: Size, orientation: Orientation) -> Vec<u8>
    where
        [u8; N]: Default,
    {
        let mut target = vec![0; pixels.len()];
        let from = Rows { samples: pixels, stride: size.width as usize };
        let stride = oriented_size(size, orientation).width as usize;
        let mut to = Rows { samples: &mut target[..], stride };
        orient::<N>(from, size, orientation, &mut to).expect("oriented");
        target
    }

    #[test]
    fn orient_matches_image_crate() {
        for exif in 1..=8 {
            let orientation = Orientation::from_exif(exif).expect("valid");
            for (width, height) in [(1, 1), (5, 3), (70, 41)] {
                let size = Size { width, height };
                let gray =
                    GrayImage::from_fn(width, height, |x, y| [(x * 7 + y * 13) as u8].into());
                let rgb = RgbImage::from_fn(width, height, |x, y| [x as u8, y as u8, 9].into());
                let mut expected = DynamicImage::from(gray.clone());
                expected.apply_orientation(orientation);
                assert_eq!(oriented::<1>(&gray, size, orientation), expected.as_bytes(), "{exif}");
                let mut expected = DynamicImage::from(rgb.clone());
                expected.apply_orientation(orientation);
                assert_eq!(oriented::<3>(&rgb, size, orientation), expected.as_bytes(), "{exif}");
            }
        }
    }
}
