//! A decoded picture, from the decoder to the encoder.

use std::borrow::Cow;

use image::{DynamicImage, metadata::Orientation};
use safelight_domain::{Failure, Size};

use crate::{
    color::ToSrgb,
    failure::bug,
    geometry::Region,
    orientation::{Rows, orient, oriented_size},
    planes::{Planes, Sampling},
    resize::Resizer,
    sharpen::sharpen,
};

/// Pixels in the form that costs the decoder least.
pub(super) enum Pixels {
    /// Luma and chroma planes, from JPEG.
    Planes(Planes),
    /// 8-bit gray, RGB or RGBA.
    Image(DynamicImage),
}

/// A decoder's result: not rotated yet, and in the picture's own color space.
pub(super) struct Picture {
    pub pixels: Pixels,
    /// The size of `pixels` relative to the full size, horizontally and vertically: less than 1 if the
    /// decoder scaled the picture down.
    pub scale: [f64; 2],
    /// Converts the colors to sRGB; `None` if they already are.
    pub color: Option<ToSrgb>,
}

impl Picture {
    /// A picture of full size.
    pub fn full(image: DynamicImage, color: Option<ToSrgb>) -> Self {
        Self { pixels: Pixels::Image(image), scale: [1.0; 2], color }
    }
}

impl Pixels {
    pub fn size(&self) -> Size {
        match self {
            Self::Planes(planes) => planes.size,
            Self::Image(image) => Size { width: image.width(), height: image.height() },
        }
    }

    pub fn has_alpha(&self) -> bool {
        matches!(self, Self::Image(image) if image.color().has_alpha())
    }

    /// Resizes a part of the picture with Lanczos3, premultiplied if there is alpha. `region` is in pixels
    /// of this picture. Planes get the given `sampling`.
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

    /// The picture rotated or mirrored.
    pub fn oriented(
        &self,
        orientation: Orientation,
        resizer: &mut Resizer,
    ) -> Result<Self, Failure> {
        let image = match self {
            Self::Planes(planes) => return planes.oriented(orientation, resizer).map(Self::Planes),
            Self::Image(image) => image,
        };
        let size = self.size();
        let Size { width, height } = oriented_size(size, orientation);
        let mut target = DynamicImage::new(width, height, image.color());
        let from = Rows { samples: image.as_bytes(), stride: size.width as usize };
        let stride = width as usize;
        match &mut target {
            DynamicImage::ImageLuma8(to) => {
                orient::<1>(from, size, orientation, &mut Rows { samples: &mut **to, stride })?;
            }
            DynamicImage::ImageRgb8(to) => {
                orient::<3>(from, size, orientation, &mut Rows { samples: &mut **to, stride })?;
            }
            DynamicImage::ImageRgba8(to) => {
                orient::<4>(from, size, orientation, &mut Rows { samples: &mut **to, stride })?;
            }
            _ => return Err(bug("neither gray nor RGB nor RGBA")),
        }
        Ok(Self::Image(target))
    }

    /// Returns the memory to the resizer for reuse.
    pub fn recycle(self, resizer: &mut Resizer) {
        if let Self::Planes(planes) = self {
            resizer.recycle(planes.samples);
        }
    }

    /// Sharpens in place with an unsharp mask.
    pub fn sharpen(&mut self, percent: u8) {
        match self {
            Self::Planes(planes) => planes.sharpen(percent),
            Self::Image(DynamicImage::ImageLuma8(gray)) => {
                let width = gray.width() as usize;
                sharpen::<1>(gray, width, percent);
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

    /// Converts to gray, RGB or RGBA.
    pub fn to_image(&self, resizer: &mut Resizer) -> Result<Cow<'_, DynamicImage>, Failure> {
        match self {
            Self::Planes(planes) => planes.to_image(resizer).map(Cow::Owned),
            Self::Image(image) => Ok(Cow::Borrowed(image)),
        }
    }

    /// [`Pixels::to_image`] without a copy.
    pub fn into_image(self, resizer: &mut Resizer) -> Result<DynamicImage, Failure> {
        match self {
            Self::Planes(planes) => planes.to_image(resizer),
            Self::Image(image) => Ok(image),
        }
    }
}
