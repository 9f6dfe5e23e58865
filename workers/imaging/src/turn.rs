//! Putting pictures upright.

use fast_transpose::{
    FlipMode, FlopMode, flip_arbitrary, flop_arbitrary, rotate180_arbitrary, transpose_arbitrary,
    transpose_plane,
};
use image::metadata::Orientation;
use safelight_domain::{Failure, Size};

use super::bug;

/// Whether rows become columns.
pub(super) fn swaps_sides(turn: Orientation) -> bool {
    matches!(
        turn,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}

/// The size after a turn.
pub(super) fn turned_size(Size { width, height }: Size, turn: Orientation) -> Size {
    if swaps_sides(turn) { Size { width: height, height: width } } else { Size { width, height } }
}

/// Pixels of `N` bytes in rows that lie `stride` pixels apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<T> {
    pub samples: T,
    pub stride: usize,
}

/// Writes a picture of `size` turned. Rows may have padding, which is left alone.
pub(super) fn turn<const N: usize>(
    from: Rows<&[u8]>,
    size: Size,
    turn: Orientation,
    to: &mut Rows<&mut [u8]>,
) -> Result<(), Failure>
where
    [u8; N]: Default,
{
    let (source, target) = (from.samples.as_chunks::<N>().0, to.samples.as_chunks_mut::<N>().0);
    let (width, height) = (size.width as usize, size.height as usize);
    let (from_stride, to_stride) = (from.stride, to.stride);
    // The library wants to see the rows of the picture and no more.
    let rows = turned_size(size, turn).height as usize;
    let source = source.get(..from_stride * height).ok_or_else(|| bug("rows are missing"))?;
    let target = target.get_mut(..to_stride * rows).ok_or_else(|| bug("rows are missing"))?;
    if let Some((flip, flop)) = transposition(turn) {
        // Bytes are what its vector instructions are for.
        return if N == 1 {
            let (source, target) = (source.as_flattened(), target.as_flattened_mut());
            transpose_plane(source, from_stride, target, to_stride, width, height, flip, flop)
        } else {
            transpose_arbitrary(source, from_stride, target, to_stride, width, height, flip, flop)
        }
        .map_err(bug);
    }
    match turn {
        Orientation::Rotate180 => {
            rotate180_arbitrary(source, from_stride, target, to_stride, width, height)
        }
        // The library's flip mirrors rows, its flop turns columns upside down.
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

/// A turn that swaps sides in the words of `fast_transpose`, where `Flop` is the plain transposition
/// and `Flip` begins with the last row.
fn transposition(turn: Orientation) -> Option<(FlipMode, FlopMode)> {
    match turn {
        Orientation::Rotate90 => Some((FlipMode::Flip, FlopMode::Flop)),
        Orientation::Rotate270 => Some((FlipMode::NoFlip, FlopMode::NoFlop)),
        Orientation::Rotate90FlipH => Some((FlipMode::NoFlip, FlopMode::Flop)),
        Orientation::Rotate270FlipH => Some((FlipMode::Flip, FlopMode::NoFlop)),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // made samples are small numbers
mod tests {
    use image::{DynamicImage, GrayImage, RgbImage};

    use super::*;

    fn turned<const N: usize>(pixels: &[u8], size: Size, orientation: Orientation) -> Vec<u8>
    where
        [u8; N]: Default,
    {
        let mut target = vec![0; pixels.len()];
        let from = Rows { samples: pixels, stride: size.width as usize };
        let stride = turned_size(size, orientation).width as usize;
        let mut to = Rows { samples: &mut target[..], stride };
        turn::<N>(from, size, orientation, &mut to).expect("turned");
        target
    }

    #[test]
    fn turns_as_the_image_crate_does() {
        for exif in 1..=8 {
            let orientation = Orientation::from_exif(exif).expect("valid");
            for (width, height) in [(1, 1), (5, 3), (70, 41)] {
                let size = Size { width, height };
                let grey =
                    GrayImage::from_fn(width, height, |x, y| [(x * 7 + y * 13) as u8].into());
                let rgb = RgbImage::from_fn(width, height, |x, y| [x as u8, y as u8, 9].into());
                let mut expected = DynamicImage::from(grey.clone());
                expected.apply_orientation(orientation);
                assert_eq!(turned::<1>(&grey, size, orientation), expected.as_bytes(), "{exif}");
                let mut expected = DynamicImage::from(rgb.clone());
                expected.apply_orientation(orientation);
                assert_eq!(turned::<3>(&rgb, size, orientation), expected.as_bytes(), "{exif}");
            }
        }
    }
}
