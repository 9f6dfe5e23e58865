//! What a picture shows, coarsely enough to compare a rendition with its original.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageReader, Rgb, RgbImage, imageops::FilterType};

/// Cells per side.
const GRID: u32 = 16;

/// The largest difference of a cell's color that scaling and compression make.
const TOLERANCE: u8 = 24;

/// The mean color of each cell of a grid.
pub(super) struct Look(RgbImage);

impl Look {
    /// What an encoded picture shows; `None` if it cannot be decoded.
    pub fn of(encoded: &[u8]) -> Option<Self> {
        let reader = ImageReader::new(Cursor::new(encoded)).with_guessed_format().ok()?;
        let mut decoder = reader.into_decoder().ok()?;
        let orientation = decoder.orientation().ok()?;
        let mut picture = DynamicImage::from_decoder(decoder).ok()?;
        picture.apply_orientation(orientation);
        let picture = on_white(&picture.into_rgba8());
        Some(Self(image::imageops::resize(&picture, GRID, GRID, FilterType::Triangle)))
    }

    /// Whether this shows the same as `original`.
    pub fn is_of(&self, original: &Self) -> bool {
        let channels = self.0.as_raw().iter().zip(original.0.as_raw());
        channels.map(|(one, other)| one.abs_diff(*other)).all(|apart| apart <= TOLERANCE)
    }
}

/// The picture on a white background, on which renditions without transparency are made.
fn on_white(picture: &image::RgbaImage) -> RgbImage {
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [r, g, b, alpha] = picture.get_pixel(x, y).0.map(u32::from);
        let blend = |color: u32| {
            u8::try_from((color * alpha + 255 * (255 - alpha)) / 255).unwrap_or(u8::MAX)
        };
        Rgb([r, g, b].map(blend))
    })
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, Result};

    use super::*;
    use crate::pictures;

    #[test]
    fn small_copy_shows_its_original_and_damaged_one_does_not() -> Result<()> {
        let photo = pictures::jpeg(640, 480, 1)?;
        let original = Look::of(&photo).context("a picture")?;
        let mut small = Cursor::new(Vec::new());
        let scaled = image::load_from_memory(&photo)?.thumbnail(160, 120).into_rgb8();
        scaled.write_to(&mut small, image::ImageFormat::Jpeg)?;
        assert!(Look::of(small.get_ref()).context("a picture")?.is_of(&original));

        let rotated = pictures::with_orientation(&photo, 6);
        let mut damaged = photo.clone();
        let middle = damaged.len() / 2;
        damaged[middle..middle + 4096].fill(0);
        assert!(!Look::of(&rotated).context("a picture")?.is_of(&original));
        assert!(Look::of(&damaged).is_none_or(|look| !look.is_of(&original)));
        Ok(())
    }
}
