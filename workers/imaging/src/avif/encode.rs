//! Encoding AVIF by rav1e.

use std::borrow::Cow;

use image::{DynamicImage, RgbImage, RgbaImage};
use ravif::{BitDepth, Encoder, Img, RGB8, RGBA8};

/// rav1e's preset, 1 (slow) to 10 (fast). This is the slowest that needs well under a second for
/// 1280 × 1045 pixels.
const ENCODER_SPEED: u8 = 9;

/// Encodes a picture as 8-bit AVIF; gray becomes RGB. `exif` is a TIFF block. Fails with the encoder's
/// message if the picture is empty or too large for it.
pub(crate) fn encode(
    image: &DynamicImage,
    quality: u8,
    exif: Option<&[u8]>,
) -> Result<Vec<u8>, String> {
    let quality = f32::from(quality.clamp(1, 100));
    let mut settings = Encoder::new()
        .with_quality(quality)
        .with_alpha_quality(quality)
        .with_speed(ENCODER_SPEED)
        .with_bit_depth(BitDepth::Eight)
        .with_num_threads(Some(1));
    if let Some(exif) = exif {
        settings = settings.with_exif(exif);
    }
    let (width, height) = (image.width() as usize, image.height() as usize);
    if width == 0 || height == 0 {
        return Err("the picture is empty".to_owned());
    }
    let encoded = if image.color().has_alpha() {
        let pixels: Vec<_> = to_rgba(image).pixels().map(|p| RGBA8::from(p.0)).collect();
        settings.encode_rgba(Img::new(&pixels[..], width, height))
    } else {
        let pixels: Vec<_> = to_rgb(image).pixels().map(|p| RGB8::from(p.0)).collect();
        settings.encode_rgb(Img::new(&pixels[..], width, height))
    };
    encoded.map(|encoded| encoded.avif_file).map_err(|error| error.to_string())
}

/// The picture as RGB. Copied only if it has another layout.
fn to_rgb(image: &DynamicImage) -> Cow<'_, RgbImage> {
    image.as_rgb8().map_or_else(|| Cow::Owned(image.to_rgb8()), Cow::Borrowed)
}

/// The picture as RGBA. Copied only if it has another layout.
fn to_rgba(image: &DynamicImage) -> Cow<'_, RgbaImage> {
    image.as_rgba8().map_or_else(|| Cow::Owned(image.to_rgba8()), Cow::Borrowed)
}
