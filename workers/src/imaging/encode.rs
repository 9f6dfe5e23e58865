//! Pixels to bytes, without any metadata.

use image::{DynamicImage, ExtendedColorType, ImageEncoder, RgbImage, codecs::png::PngEncoder};
use safelight_common::domain::{ErrorCode, Failure, ImageFormat, PresetFormat};

/// The longest side that a WebP can have, in pixels.
pub(super) const WEBP_MAX_SIDE: u32 = 16_383;

/// The format that a preset means for a picture.
pub(super) fn choose(asked: PresetFormat, image: &DynamicImage) -> ImageFormat {
    match asked {
        PresetFormat::Auto if image.color().has_alpha() => ImageFormat::Webp,
        PresetFormat::Auto | PresetFormat::Jpeg => ImageFormat::Jpeg,
        PresetFormat::Webp => ImageFormat::Webp,
        PresetFormat::Png => ImageFormat::Png,
    }
}

/// Encodes 8-bit grey, RGB or RGBA as JPEG, WebP or PNG. `quality` is 1–100; PNG has none.
pub(super) fn encode(
    image: &DynamicImage,
    format: ImageFormat,
    quality: u8,
) -> Result<Vec<u8>, Failure> {
    match format {
        ImageFormat::Webp => webp(image, quality),
        ImageFormat::Png => png(image),
        _ => jpeg(image, quality),
    }
}

fn jpeg(image: &DynamicImage, quality: u8) -> Result<Vec<u8>, Failure> {
    let on_white;
    let (pixels, colours) = match image {
        DynamicImage::ImageLuma8(grey) => (grey.as_raw(), jpeg_encoder::ColorType::Luma),
        DynamicImage::ImageRgb8(rgb) => (rgb.as_raw(), jpeg_encoder::ColorType::Rgb),
        other => {
            on_white = lay_on_white(other);
            (on_white.as_raw(), jpeg_encoder::ColorType::Rgb)
        }
    };
    let side = |pixels: u32| u16::try_from(pixels).map_err(failure);
    let (width, height) = (side(image.width())?, side(image.height())?);
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, quality);
    // Quarter chroma is what JPEG of this quality is expected to have, and the default only below
    // quality 90.
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
    encoder.encode(pixels, width, height, colours).map_err(failure)?;
    Ok(bytes)
}

fn webp(image: &DynamicImage, quality: u8) -> Result<Vec<u8>, Failure> {
    let (width, height) = (image.width(), image.height());
    let rgb;
    let encoder = match image {
        DynamicImage::ImageRgba8(rgba) => webp::Encoder::from_rgba(rgba, width, height),
        DynamicImage::ImageRgb8(rgb) => webp::Encoder::from_rgb(rgb, width, height),
        other => {
            rgb = other.to_rgb8();
            webp::Encoder::from_rgb(&rgb, width, height)
        }
    };
    let bytes = encoder
        .encode_simple(false, f32::from(quality))
        .map_err(|error| failure(format!("{error:?}")))?;
    Ok(bytes.to_vec())
}

fn png(image: &DynamicImage) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let colours = ExtendedColorType::from(image.color());
    PngEncoder::new(&mut bytes)
        .write_image(image.as_bytes(), image.width(), image.height(), colours)
        .map_err(failure)?;
    Ok(bytes)
}

fn lay_on_white(image: &DynamicImage) -> RgbImage {
    let mut flat = RgbImage::new(image.width(), image.height());
    for (to, from) in flat.pixels_mut().zip(image.to_rgba8().pixels()) {
        let [red, green, blue, alpha] = from.0.map(u32::from);
        let over = |colour: u32| {
            let mixed = (colour * alpha + 255 * (255 - alpha) + 127) / 255;
            u8::try_from(mixed).unwrap_or(u8::MAX)
        };
        to.0 = [over(red), over(green), over(blue)];
    }
    flat
}

/// Encoding what was decoded and resized here cannot fail by the picture's fault: it is a bug, and
/// counts as a panic does.
fn failure(error: impl std::fmt::Display) -> Failure {
    tracing::error!(%error, "an encoder refused a picture");
    Failure::new(ErrorCode::WorkerPanicked, "the rendition could not be encoded")
}
