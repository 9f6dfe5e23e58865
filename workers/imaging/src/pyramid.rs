//! A picture and the scaled-down copies made from it so far.

use safelight_domain::{Failure, Size};

use crate::{
    color::ToSrgb,
    geometry::{Region, Viewport},
    picture::{Picture, Pixels},
    planes::Sampling,
    resize::Resizer,
};

/// A level of at least this many times the target size has all visible detail, and is much cheaper to read
/// than the original.
const MIN_OVERSAMPLING: f64 = 1.99;

/// All levels are unrotated; all but the first are in sRGB.
pub(super) struct Pyramid {
    full: Size,
    color: Option<ToSrgb>,
    /// From large to small, each with its scale relative to the full size, horizontally and vertically.
    levels: Vec<(Pixels, [f64; 2])>,
}

impl Pyramid {
    /// A pyramid with one level. `full` is the picture's size before the decoder scaled it.
    pub fn new(picture: Picture, full: Size) -> Self {
        let Picture { pixels, scale, color } = picture;
        Self { full, color, levels: vec![(pixels, scale)] }
    }

    /// Renders a viewport, in sRGB, from the smallest level that has enough detail.
    pub fn render(
        &mut self,
        viewport: Viewport,
        sampling: Sampling,
        resizer: &mut Resizer,
    ) -> Result<Pixels, Failure> {
        let reduction = viewport.reduction();
        let is_large_enough =
            |(_, [across, _]): &(Pixels, [f64; 2])| across * reduction >= MIN_OVERSAMPLING;
        let level = self.levels.iter().rposition(is_large_enough).unwrap_or(0);
        let (source, [across, down]) = &self.levels[level];
        let Region { left, top, width, height } = viewport.region;
        let region = Region {
            left: left * across,
            top: top * down,
            width: width * across,
            height: height * down,
        };
        match &self.color {
            // Converting the colors after resizing needs fewer pixels. The transform needs full chroma.
            Some(color) if level == 0 => {
                let small = source.resized(resizer, region, viewport.size, Sampling::FULL)?;
                Ok(Pixels::Image(color.apply(small.into_image(resizer)?)?))
            }
            _ => source.resized(resizer, region, viewport.size, sampling),
        }
    }

    /// Adds a result of [`Pyramid::render`] as a level if it shows the whole picture.
    pub fn keep(&mut self, viewport: Viewport, pixels: Pixels, resizer: &mut Resizer) {
        if viewport.region == Region::whole(self.full) {
            let Size { width, height } = viewport.size;
            let across = f64::from(width) / f64::from(self.full.width);
            let down = f64::from(height) / f64::from(self.full.height);
            self.levels.push((pixels, [across, down]));
        } else {
            pixels.recycle(resizer);
        }
    }

    /// Returns the memory to the resizer for reuse.
    pub fn recycle(self, resizer: &mut Resizer) {
        for (pixels, _) in self.levels {
            pixels.recycle(resizer);
        }
    }
}
