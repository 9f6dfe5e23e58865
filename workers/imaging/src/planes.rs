//! Pictures as luma and chroma planes, as JPEG stores them. The chroma planes are often smaller.

use image::{DynamicImage, GrayImage, RgbImage, metadata::Orientation};
use safelight_domain::{Failure, Size};
use yuv::{YuvPlanarImage, YuvRange, YuvStandardMatrix, yuv444_to_rgb};

use crate::{
    failure::bug,
    geometry::Region,
    orientation::{Rows, orient, oriented_size, swaps_sides},
    resize::Resizer,
    sharpen::sharpen,
};

/// The number of pixels that share one chroma sample, horizontally and vertically.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sampling {
    pub across: u32,
    pub down: u32,
}

impl Sampling {
    /// One chroma sample per pixel (4:4:4).
    pub const FULL: Self = Self { across: 1, down: 1 };
    /// One chroma sample per four pixels (4:2:0).
    pub const QUARTER: Self = Self { across: 2, down: 2 };
}

/// Luma and chroma as in JFIF: BT.601, full range. The planes follow each other without gaps. The luma plane is
/// padded to whole chroma samples.
pub(super) struct Planes {
    pub size: Size,
    /// `None` for gray, which has no chroma planes.
    pub sampling: Option<Sampling>,
    pub samples: Vec<u8>,
}

impl Planes {
    /// Planes with arbitrary contents, to be filled.
    pub fn new(size: Size, sampling: Option<Sampling>, resizer: &mut Resizer) -> Self {
        let chroma = sampling.map_or(0, |sampling| chroma_size(size, sampling).len());
        let samples = resizer.buffer(luma_size(size, sampling).len() + 2 * chroma);
        Self { size, sampling, samples }
    }

    /// Resizes a part of the picture with Lanczos3. `region` is in pixels of this picture.
    pub fn resized(
        &self,
        resizer: &mut Resizer,
        region: Region,
        size: Size,
        sampling: Sampling,
    ) -> Result<Self, Failure> {
        let sampling = self.sampling.map(|_| sampling);
        let luma = luma_size(size, sampling);
        let mut target = Self::new(size, sampling, resizer);
        let (to_luma, to_chroma) = target.samples.split_at_mut(luma.len());
        let from = luma_size(self.size, self.sampling);
        let (from_luma, from_chroma) = self.samples.split_at(from.len());
        resizer.planes((from_luma, from), region, size, to_luma, luma.width as usize)?;
        pad(to_luma, luma, size);
        if let Some((from_sampling, to_sampling)) = self.sampling.zip(sampling) {
            let region = chroma_region((region, self.size), from_sampling, size, to_sampling);
            let (from, to) =
                (chroma_size(self.size, from_sampling), chroma_size(size, to_sampling));
            resizer.planes((from_chroma, from), region, to, to_chroma, to.width as usize)?;
        }
        Ok(target)
    }

    /// The picture rotated or mirrored.
    pub fn oriented(
        &self,
        orientation: Orientation,
        resizer: &mut Resizer,
    ) -> Result<Self, Failure> {
        let size = oriented_size(self.size, orientation);
        let sampling = self.sampling.map(|Sampling { across, down }| {
            if swaps_sides(orientation) {
                Sampling { across: down, down: across }
            } else {
                Sampling { across, down }
            }
        });
        let mut target = Self::new(size, sampling, resizer);
        let (from, luma) = (luma_size(self.size, self.sampling), luma_size(size, sampling));
        let (from_luma, from_chroma) = self.samples.split_at(from.len());
        let (to_luma, to_chroma) = target.samples.split_at_mut(luma.len());
        orient_plane((from_luma, from), self.size, orientation, (to_luma, luma))?;
        pad(to_luma, luma, size);
        let Some((own, target_sampling)) = self.sampling.zip(sampling) else { return Ok(target) };
        let (from, to) = (chroma_size(self.size, own), chroma_size(size, target_sampling));
        let pairs = from_chroma.chunks_exact(from.len()).zip(to_chroma.chunks_exact_mut(to.len()));
        for (source, target) in pairs {
            orient_plane((source, from), from, orientation, (target, to))?;
        }
        Ok(target)
    }

    /// Sharpens the luma plane. Sharper chroma would not be visible.
    pub fn sharpen(&mut self, percent: u8) {
        let luma = luma_size(self.size, self.sampling);
        let (samples, _) = self.samples.split_at_mut(luma.len());
        sharpen::<1>(samples, luma.width as usize, percent);
    }

    /// Converts to gray or RGB.
    pub fn to_image(&self, resizer: &mut Resizer) -> Result<DynamicImage, Failure> {
        let Size { width, height } = self.size;
        let luma = luma_size(self.size, self.sampling);
        let (y_plane, _) = self.samples.split_at(luma.len());
        if self.sampling.is_none() {
            let gray = GrayImage::from_raw(width, height, y_plane.to_vec());
            return gray.map(DynamicImage::from).ok_or_else(|| bug("a plane is too short"));
        }
        let full;
        let planes = if self.sampling == Some(Sampling::FULL) {
            self
        } else {
            let whole = Region::whole(self.size);
            full = self.resized(resizer, whole, self.size, Sampling::FULL)?;
            &full
        };
        let [y_plane, u_plane, v_plane] = planes.split();
        let picture = YuvPlanarImage {
            y_plane,
            u_plane,
            v_plane,
            y_stride: width,
            u_stride: width,
            v_stride: width,
            width,
            height,
        };
        let mut rgb = RgbImage::new(width, height);
        let (range, matrix) = (YuvRange::Full, YuvStandardMatrix::Bt601);
        yuv444_to_rgb(&picture, &mut rgb, width * 3, range, matrix).map_err(bug)?;
        Ok(rgb.into())
    }

    /// Luma and both chroma planes, which are empty in a gray picture.
    pub fn split(&self) -> [&[u8]; 3] {
        let (luma, chroma) = self.samples.split_at(luma_size(self.size, self.sampling).len());
        let (blue, red) = chroma.split_at(chroma.len() / 2);
        [luma, blue, red]
    }
}

/// The size of the luma plane, with its padding.
fn luma_size(size: Size, sampling: Option<Sampling>) -> Size {
    let Sampling { across, down } = sampling.unwrap_or(Sampling::FULL);
    Size { width: size.width.next_multiple_of(across), height: size.height.next_multiple_of(down) }
}

/// The size of a chroma plane.
pub(super) fn chroma_size(size: Size, sampling: Sampling) -> Size {
    Size {
        width: size.width.div_ceil(sampling.across),
        height: size.height.div_ceil(sampling.down),
    }
}

/// The region in chroma samples. If the samples of the target extend beyond its edge, so must the region.
fn chroma_region(
    (region, full): (Region, Size),
    from: Sampling,
    size: Size,
    to: Sampling,
) -> Region {
    let target = chroma_size(size, to);
    let extend = |length: f64, pixels: u32, samples: u32, pixels_per_sample: u32| {
        length / f64::from(pixels) * f64::from(samples * pixels_per_sample)
    };
    let (across, down) = (f64::from(from.across), f64::from(from.down));
    let width = extend(region.width, size.width, target.width, to.across);
    let height = extend(region.height, size.height, target.height, to.down);
    // But not beyond the picture: in one of a few rows, most of the region would be outside.
    let width = width.min(f64::from(full.width) - region.left);
    let height = height.min(f64::from(full.height) - region.top);
    Region {
        left: region.left / across,
        top: region.top / down,
        width: width / across,
        height: height / down,
    }
}

fn orient_plane(
    (source, from): (&[u8], Size),
    size: Size,
    orientation: Orientation,
    (target, to): (&mut [u8], Size),
) -> Result<(), Failure> {
    let from = Rows { samples: source, stride: from.width as usize };
    orient::<1>(from, size, orientation, &mut Rows { samples: target, stride: to.width as usize })
}

/// Fills the padding of a plane with its last pixels, so that resizing blends in no other values.
fn pad(plane: &mut [u8], padded: Size, size: Size) {
    let (stride, width) = (padded.width as usize, size.width as usize);
    if stride > width {
        for row in plane.chunks_exact_mut(stride) {
            let last = row[width - 1];
            row[width..].fill(last);
        }
    }
    let rows = size.height as usize;
    for row in rows..padded.height as usize {
        plane.copy_within((rows - 1) * stride..rows * stride, row * stride);
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // generated samples are small
mod tests {
    use super::*;

    /// Luma increases to the right, chroma downwards.
    fn planes(size: Size, sampling: Sampling) -> Planes {
        let mut resizer = Resizer::new().expect("a filter");
        let mut planes = Planes::new(size, Some(sampling), &mut resizer);
        let luma = luma_size(size, Some(sampling));
        let chroma = chroma_size(size, sampling);
        let (y, colors) = planes.samples.split_at_mut(luma.len());
        for (at, sample) in y.iter_mut().enumerate() {
            *sample = (50 + 50 * (2 * (at as u32 % luma.width) + 1) / luma.width) as u8;
        }
        for plane in colors.chunks_exact_mut(chroma.len()) {
            for (at, sample) in plane.iter_mut().enumerate() {
                *sample = (90 + 30 * (2 * (at as u32 / chroma.width) + 1) / chroma.height) as u8;
            }
        }
        planes
    }

    #[test]
    fn every_sampling_and_odd_size_gives_the_same_picture() {
        let mut resizer = Resizer::new().expect("a filter");
        // Half a chroma sample is a large part of a picture of a few pixels.
        for (width, height, near) in [(64, 48, 12), (63, 47, 12), (5, 3, 45), (1, 1, 45)] {
            let size = Size { width: 2 * width, height: 2 * height };
            let whole = Region::whole(size);
            let small = Size { width, height };
            let reference = planes(size, Sampling::FULL)
                .resized(&mut resizer, whole, small, Sampling::FULL)
                .and_then(|planes| planes.to_image(&mut resizer))
                .expect("RGB");
            for (across, down) in [(1, 1), (2, 1), (2, 2), (1, 2), (4, 1)] {
                let source = planes(size, Sampling { across, down });
                for sampling in [Sampling::FULL, Sampling::QUARTER] {
                    let image = source
                        .resized(&mut resizer, whole, small, sampling)
                        .and_then(|planes| planes.to_image(&mut resizer))
                        .expect("RGB");
                    let far = image.as_bytes().iter().zip(reference.as_bytes());
                    let worst = far.map(|(a, b)| a.abs_diff(*b)).max();
                    let what = format!("{width}x{height} {across}:{down} to {sampling:?}");
                    assert!(worst <= Some(near), "{what}: {worst:?}");
                }
            }
        }
    }

    #[test]
    fn planes_orient_like_rgb() {
        let mut resizer = Resizer::new().expect("a filter");
        let size = Size { width: 31, height: 18 };
        for exif in 1..=8 {
            let orientation = Orientation::from_exif(exif).expect("valid");
            let planes = planes(size, Sampling::QUARTER);
            let mut expected = planes.to_image(&mut resizer).expect("RGB");
            expected.apply_orientation(orientation);
            let turned = planes
                .oriented(orientation, &mut resizer)
                .expect("oriented")
                .to_image(&mut resizer)
                .expect("RGB");
            assert_eq!(turned.width(), expected.width());
            let far = turned.as_bytes().iter().zip(expected.as_bytes());
            let worst = far.map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst < Some(12), "orientation {exif}: {worst:?}");
        }
    }
}
