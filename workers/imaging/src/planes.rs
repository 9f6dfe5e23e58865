//! Pictures as JPEG has them: a plane of brightness and two, often smaller, of colour.

use image::{DynamicImage, GrayImage, RgbImage, metadata::Orientation};
use safelight_domain::{Failure, Size};
use yuv::{YuvPlanarImage, YuvRange, YuvStandardMatrix, yuv444_to_rgb};

use super::{
    bug,
    geometry::Region,
    resize::Resizer,
    sharpen::sharpen,
    turn::{Rows, swaps_sides, turn, turned_size},
};

/// How many pixels share one sample of colour, across and down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sampling {
    pub across: u32,
    pub down: u32,
}

impl Sampling {
    /// A sample for each pixel (4:4:4).
    pub const FULL: Self = Self { across: 1, down: 1 };
    /// A sample for each four pixels (4:2:0).
    pub const QUARTER: Self = Self { across: 2, down: 2 };
}

/// Brightness and colour as JFIF has them: BT.601, full range. The planes stand one after the other without gaps; that
/// of brightness is padded to whole samples of colour.
pub(super) struct Planes {
    pub size: Size,
    /// `None`: grey, there is one plane.
    pub sampling: Option<Sampling>,
    pub samples: Vec<u8>,
}

impl Planes {
    /// Planes to be filled; with whatever is in the memory.
    pub fn new(size: Size, sampling: Option<Sampling>, resizer: &mut Resizer) -> Self {
        let chroma = sampling.map_or(0, |sampling| shared(size, sampling).len());
        let samples = resizer.take(padded(size, sampling).len() + 2 * chroma);
        Self { size, sampling, samples }
    }

    /// A part of the picture, resized by Lanczos3. `region` is in pixels of this picture.
    pub fn resized(
        &self,
        resizer: &mut Resizer,
        region: Region,
        size: Size,
        sampling: Sampling,
    ) -> Result<Self, Failure> {
        let sampling = self.sampling.map(|_| sampling);
        let luma = padded(size, sampling);
        let mut target = Self::new(size, sampling, resizer);
        let (to_luma, to_chroma) = target.samples.split_at_mut(luma.len());
        let from = padded(self.size, self.sampling);
        let (from_luma, from_chroma) = self.samples.split_at(from.len());
        resizer.planes((from_luma, from), region, size, to_luma, luma.width as usize)?;
        pad(to_luma, luma, size);
        if let Some((from_shares, to_shares)) = self.sampling.zip(sampling) {
            let region = shared_region((region, self.size), from_shares, size, to_shares);
            let (from, to) = (shared(self.size, from_shares), shared(size, to_shares));
            resizer.planes((from_chroma, from), region, to, to_chroma, to.width as usize)?;
        }
        Ok(target)
    }

    /// The picture turned or mirrored.
    pub fn turned(&self, orientation: Orientation, resizer: &mut Resizer) -> Result<Self, Failure> {
        let size = turned_size(self.size, orientation);
        let sampling = self.sampling.map(|Sampling { across, down }| {
            if swaps_sides(orientation) {
                Sampling { across: down, down: across }
            } else {
                Sampling { across, down }
            }
        });
        let mut target = Self::new(size, sampling, resizer);
        let (from, luma) = (padded(self.size, self.sampling), padded(size, sampling));
        let (from_luma, from_chroma) = self.samples.split_at(from.len());
        let (to_luma, to_chroma) = target.samples.split_at_mut(luma.len());
        turn_plane((from_luma, from), self.size, orientation, (to_luma, luma))?;
        pad(to_luma, luma, size);
        let Some((shares, turned)) = self.sampling.zip(sampling) else { return Ok(target) };
        let (from, to) = (shared(self.size, shares), shared(size, turned));
        let pairs = from_chroma.chunks_exact(from.len()).zip(to_chroma.chunks_exact_mut(to.len()));
        for (source, target) in pairs {
            turn_plane((source, from), from, orientation, (target, to))?;
        }
        Ok(target)
    }

    /// Sharpens the brightness; colour has no edges that anyone sees.
    pub fn sharpen(&mut self, percent: u8) {
        let luma = padded(self.size, self.sampling);
        let (samples, _) = self.samples.split_at_mut(luma.len());
        sharpen::<1>(samples, luma.width as usize, percent);
    }

    /// The same picture as grey or RGB.
    pub fn to_image(&self, resizer: &mut Resizer) -> Result<DynamicImage, Failure> {
        let Size { width, height } = self.size;
        let luma = padded(self.size, self.sampling);
        let (y_plane, _) = self.samples.split_at(luma.len());
        if self.sampling.is_none() {
            let grey = GrayImage::from_raw(width, height, y_plane.to_vec());
            return grey.map(DynamicImage::from).ok_or_else(|| bug("a plane is too short"));
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

    /// The three planes; the two of colour are empty in a grey picture.
    pub fn split(&self) -> [&[u8]; 3] {
        let (luma, chroma) = self.samples.split_at(padded(self.size, self.sampling).len());
        let (blue, red) = chroma.split_at(chroma.len() / 2);
        [luma, blue, red]
    }
}

/// The size of the plane of brightness.
fn padded(size: Size, sampling: Option<Sampling>) -> Size {
    let Sampling { across, down } = sampling.unwrap_or(Sampling::FULL);
    Size { width: size.width.next_multiple_of(across), height: size.height.next_multiple_of(down) }
}

/// The size of a plane of colour.
pub(super) fn shared(size: Size, sampling: Sampling) -> Size {
    Size {
        width: size.width.div_ceil(sampling.across),
        height: size.height.div_ceil(sampling.down),
    }
}

/// The region in samples of colour. Those of the target may reach beyond its edge, which their
/// region has to do, too.
fn shared_region(
    (region, full): (Region, Size),
    from: Sampling,
    size: Size,
    to: Sampling,
) -> Region {
    let target = shared(size, to);
    let reach = |length: f64, pixels: u32, samples: u32, shares: u32| {
        length / f64::from(pixels) * f64::from(samples * shares)
    };
    let (across, down) = (f64::from(from.across), f64::from(from.down));
    let width = reach(region.width, size.width, target.width, to.across);
    let height = reach(region.height, size.height, target.height, to.down);
    // But not into what is no picture any more: of a few rows that would be most of it.
    let width = width.min(f64::from(full.width) - region.left);
    let height = height.min(f64::from(full.height) - region.top);
    Region {
        left: region.left / across,
        top: region.top / down,
        width: width / across,
        height: height / down,
    }
}

fn turn_plane(
    (source, from): (&[u8], Size),
    size: Size,
    orientation: Orientation,
    (target, to): (&mut [u8], Size),
) -> Result<(), Failure> {
    let from = Rows { samples: source, stride: from.width as usize };
    turn::<1>(from, size, orientation, &mut Rows { samples: target, stride: to.width as usize })
}

/// Repeats the last pixels of a plane in its padding, so that they do not bleed.
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
#[allow(clippy::cast_possible_truncation)] // made samples are small numbers
mod tests {
    use super::*;

    /// Brightness grows to the right, colour downwards.
    fn planes(size: Size, sampling: Sampling) -> Planes {
        let mut resizer = Resizer::new().expect("a filter");
        let mut planes = Planes::new(size, Some(sampling), &mut resizer);
        let luma = padded(size, Some(sampling));
        let chroma = shared(size, sampling);
        let (y, colours) = planes.samples.split_at_mut(luma.len());
        for (at, sample) in y.iter_mut().enumerate() {
            *sample = (50 + 50 * (2 * (at as u32 % luma.width) + 1) / luma.width) as u8;
        }
        for plane in colours.chunks_exact_mut(chroma.len()) {
            for (at, sample) in plane.iter_mut().enumerate() {
                *sample = (90 + 30 * (2 * (at as u32 / chroma.width) + 1) / chroma.height) as u8;
            }
        }
        planes
    }

    #[test]
    fn every_sampling_and_odd_size_gives_the_same_picture() {
        let mut resizer = Resizer::new().expect("a filter");
        // In a picture of a few pixels, half a sample of colour is a large part of it.
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
    fn turns_as_rgb_does() {
        let mut resizer = Resizer::new().expect("a filter");
        let size = Size { width: 31, height: 18 };
        for exif in 1..=8 {
            let turn = Orientation::from_exif(exif).expect("valid");
            let planes = planes(size, Sampling::QUARTER);
            let mut expected = planes.to_image(&mut resizer).expect("RGB");
            expected.apply_orientation(turn);
            let turned = planes
                .turned(turn, &mut resizer)
                .expect("turned")
                .to_image(&mut resizer)
                .expect("RGB");
            assert_eq!(turned.width(), expected.width());
            let far = turned.as_bytes().iter().zip(expected.as_bytes());
            let worst = far.map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst < Some(12), "orientation {exif}: {worst:?}");
        }
    }
}
