//! A picture and the smaller ones made of it so far.

use safelight_domain::{Failure, Size};

use super::{
    colour::ToSrgb,
    geometry::{Frame, Region},
    picture::{Picture, Pixels},
    planes::Sampling,
    resize::Resizer,
};

/// A picture of at least this many times the wanted size has all the detail that can be shown, and
/// is much less to read than the original.
const ENOUGH: f64 = 1.99;

/// All levels are as coded (not turned); all but the first are in sRGB.
pub(super) struct Pyramid {
    full: Size,
    colour: Option<ToSrgb>,
    /// From large to small, each with its pixels for one of the full size, across and down.
    levels: Vec<(Pixels, [f64; 2])>,
}

impl Pyramid {
    /// A picture whose full size is this.
    pub fn new(picture: Picture, full: Size) -> Self {
        let Picture { pixels, scale, colour } = picture;
        Self { full, colour, levels: vec![(pixels, scale)] }
    }

    /// What a frame shows, in sRGB. Whole pictures are kept to make smaller ones of.
    pub fn show(
        &mut self,
        frame: Frame,
        sampling: Sampling,
        resizer: &mut Resizer,
    ) -> Result<Pixels, Failure> {
        let reduction = frame.reduction();
        let enough = |(_, [across, _]): &(Pixels, [f64; 2])| across * reduction >= ENOUGH;
        let level = self.levels.iter().rposition(enough).unwrap_or(0);
        let (source, [across, down]) = &self.levels[level];
        let Region { left, top, width, height } = frame.region;
        let region = Region {
            left: left * across,
            top: top * down,
            width: width * across,
            height: height * down,
        };
        match &self.colour {
            // Colours are converted where there are few pixels, and all of them at once.
            Some(colour) if level == 0 => {
                let small = source.resized(resizer, region, frame.size, Sampling::FULL)?;
                Ok(Pixels::Image(colour.apply(small.into_image(resizer)?)?))
            }
            _ => source.resized(resizer, region, frame.size, sampling),
        }
    }

    /// Keeps a picture that [`Pyramid::show`] made, to make smaller ones of, if it is a whole one.
    pub fn keep(&mut self, frame: Frame, pixels: Pixels, resizer: &mut Resizer) {
        if frame.region == Region::whole(self.full) {
            let Size { width, height } = frame.size;
            let across = f64::from(width) / f64::from(self.full.width);
            let down = f64::from(height) / f64::from(self.full.height);
            self.levels.push((pixels, [across, down]));
        } else {
            pixels.dissolve(resizer);
        }
    }

    /// Gives the memory back, to be used again.
    pub fn dissolve(self, resizer: &mut Resizer) {
        for (pixels, _) in self.levels {
            pixels.dissolve(resizer);
        }
    }
}
