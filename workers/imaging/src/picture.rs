//! A decoded picture on its way to a rendition.

use std::borrow::Cow;

use image::{DynamicImage, metadata::Orientation};
use safelight_domain::{Failure, Size};

use super::{
    bug,
    colour::ToSrgb,
    geometry::Region,
    planes::{Planes, Sampling},
    resize::Resizer,
    sharpen::sharpen,
    turn::{Rows, turn, turned_size},
};

/// Pixels in whichever form the decoder gives them cheaply.
pub(super) enum Pixels {
    /// As JPEG has them.
    Planes(Planes),
    /// 8-bit grey, RGB or RGBA.
    Image(DynamicImage),
}

/// What a decoder gives: as coded (not turned), in the picture's own colours.
pub(super) struct Picture {
    pub pixels: Pixels,
    /// How many pixels there are for each one of the full size, across and down: less than 1 where
    /// the decoder made the picture smaller.
    pub scale: [f64; 2],
    /// What makes the colours sRGB, unless they are.
    pub colour: Option<ToSrgb>,
}

impl Picture {
    /// A picture of full size.
    pub fn full(image: DynamicImage, colour: Option<ToSrgb>) -> Self {
        Self { pixels: Pixels::Image(image), scale: [1.0; 2], colour }
    }
}

impl Pixels {
    pub fn size(&self) -> Size {
        match self {
            Self::Planes(planes) => planes.size,
            Self::Image(image) => Size { width: image.width(), height: image.height() },
        }
    }

    /// Whether something may show through.
    pub fn has_alpha(&self) -> bool {
        matches!(self, Self::Image(image) if image.color().has_alpha())
    }

    /// A part of the picture, resized by Lanczos3 (premultiplied where there is alpha). `region` is
    /// in pixels of this picture; planes come out in `sampling`.
    pub fn resized(
        &self,
        resizer: &mut Resizer,
        region: Region,
        size: Size,
        sampling: Sampling,
    ) -> Result<Self, Failure> {
        let image = match self {
            Self::Planes(planes) => {
                return planes.resized(resizer, region, size, sampling).map(Self::Planes);
            }
            Self::Image(image) => image,
        };
        resizer.image(image, region, size).map(Self::Image)
    }

    /// The picture turned or mirrored.
    pub fn turned(&self, orientation: Orientation, resizer: &mut Resizer) -> Result<Self, Failure> {
        let image = match self {
            Self::Planes(planes) => return planes.turned(orientation, resizer).map(Self::Planes),
            Self::Image(image) => image,
        };
        let size = self.size();
        let Size { width, height } = turned_size(size, orientation);
        let mut target = DynamicImage::new(width, height, image.color());
        let from = Rows { samples: image.as_bytes(), stride: size.width as usize };
        let stride = width as usize;
        match &mut target {
            DynamicImage::ImageLuma8(to) => {
                turn::<1>(from, size, orientation, &mut Rows { samples: &mut **to, stride })?;
            }
            DynamicImage::ImageRgb8(to) => {
                turn::<3>(from, size, orientation, &mut Rows { samples: &mut **to, stride })?;
            }
            DynamicImage::ImageRgba8(to) => {
                turn::<4>(from, size, orientation, &mut Rows { samples: &mut **to, stride })?;
            }
            _ => return Err(bug("neither grey nor RGB nor RGBA")),
        }
        Ok(Self::Image(target))
    }

    /// Gives the memory back, to be used again.
    pub fn dissolve(self, resizer: &mut Resizer) {
        if let Self::Planes(planes) = self {
            resizer.give(planes.samples);
        }
    }

    /// Sharpens in place, by an unsharp mask of so many percent.
    pub fn sharpen(&mut self, percent: u8) {
        match self {
            Self::Planes(planes) => planes.sharpen(percent),
            Self::Image(DynamicImage::ImageLuma8(grey)) => {
                let width = grey.width() as usize;
                sharpen::<1>(grey, width, percent);
            }
            Self::Image(DynamicImage::ImageRgb8(rgb)) => {
                let width = rgb.width() as usize;
                sharpen::<3>(rgb, width, percent);
            }
            Self::Image(DynamicImage::ImageRgba8(rgba)) => {
                let width = rgba.width() as usize;
                sharpen::<4>(rgba, width, percent);
            }
            Self::Image(_) => {}
        }
    }

    /// The same as grey, RGB or RGBA.
    pub fn to_image(&self, resizer: &mut Resizer) -> Result<Cow<'_, DynamicImage>, Failure> {
        match self {
            Self::Planes(planes) => planes.to_image(resizer).map(Cow::Owned),
            Self::Image(image) => Ok(Cow::Borrowed(image)),
        }
    }

    /// The same as grey, RGB or RGBA.
    pub fn into_image(self, resizer: &mut Resizer) -> Result<DynamicImage, Failure> {
        match self {
            Self::Planes(planes) => planes.to_image(resizer),
            Self::Image(image) => Ok(image),
        }
    }
}
