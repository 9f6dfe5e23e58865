//! Encodes pixels, without any metadata but the EXIF block that the caller passes.

use image::{DynamicImage, ExtendedColorType, ImageEncoder, RgbImage, codecs::png::PngEncoder};
use img_parts::{ImageEXIF, jpeg::Jpeg as JpegFile, png::Png, webp::WebP};
use safelight_domain::{Failure, Formats, ImageFormat, PresetFormat};

use crate::{avif, failure::bug, jpeg, picture::Pixels, resize::Resizer};

/// The longest possible side of a WebP, in pixels.
pub(super) const WEBP_MAX_SIDE: u32 = 16_383;

/// The formats to encode for the formats that a preset asks for, without duplicates.
pub(super) fn choose_formats(
    requested: &Formats,
    has_alpha: bool,
    is_animated: bool,
) -> Vec<ImageFormat> {
    let mut chosen = Vec::with_capacity(requested.len());
    for format in requested.iter().map(|format| choose_format(*format, has_alpha, is_animated)) {
        if !chosen.contains(&format) {
            chosen.push(format);
        }
    }
    chosen
}

fn choose_format(requested: PresetFormat, has_alpha: bool, is_animated: bool) -> ImageFormat {
    match requested {
        PresetFormat::Auto if has_alpha || is_animated => ImageFormat::Webp,
        PresetFormat::Auto | PresetFormat::Jpeg => ImageFormat::Jpeg,
        PresetFormat::Webp => ImageFormat::Webp,
        PresetFormat::Avif => ImageFormat::Avif,
        PresetFormat::Png => ImageFormat::Png,
    }
}

/// Encodes as JPEG, WebP, AVIF or PNG. `quality` is 1–100, and PNG ignores it. `exif` is embedded as is.
pub(super) fn encode(
    pixels: &Pixels,
    format: ImageFormat,
    quality: u8,
    exif: Option<&[u8]>,
    resizer: &mut Resizer,
) -> Result<Vec<u8>, Failure> {
    let bytes = match format {
        ImageFormat::Webp => webp(pixels.to_image(resizer)?.as_ref(), quality)?,
        ImageFormat::Avif => {
            return avif::encode(pixels.to_image(resizer)?.as_ref(), quality, exif).map_err(bug);
        }
        ImageFormat::Png => png(pixels.to_image(resizer)?.as_ref())?,
        _ => match pixels {
            Pixels::Image(image) if image.color().has_alpha() => {
                jpeg::encode(&Pixels::Image(flatten_on_white(image).into()), quality)?
            }
            pixels => jpeg::encode(pixels, quality)?,
        },
    };
    match exif {
        None => Ok(bytes),
        Some(exif) => with_exif(bytes, format, exif),
    }
}

/// Encodes as lossy WebP.
pub(super) fn webp(image: &DynamicImage, quality: u8) -> Result<Vec<u8>, Failure> {
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
        .map_err(|error| bug(format!("{error:?}")))?;
    Ok(bytes.to_vec())
}

fn png(image: &DynamicImage) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let colors = ExtendedColorType::from(image.color());
    PngEncoder::new(&mut bytes)
        .write_image(image.as_bytes(), image.width(), image.height(), colors)
        .map_err(bug)?;
    Ok(bytes)
}

fn flatten_on_white(image: &DynamicImage) -> RgbImage {
    let mut flat = RgbImage::new(image.width(), image.height());
    for (to, from) in flat.pixels_mut().zip(image.to_rgba8().pixels()) {
        let [red, green, blue, alpha] = from.0.map(u32::from);
        let over = |color: u32| {
            let mixed = (color * alpha + 255 * (255 - alpha) + 127) / 255;
            u8::try_from(mixed).unwrap_or(u8::MAX)
        };
        to.0 = [over(red), over(green), over(blue)];
    }
    flat
}

/// Embeds an EXIF block into a file that has none.
pub(super) fn with_exif(
    bytes: Vec<u8>,
    format: ImageFormat,
    exif: &[u8],
) -> Result<Vec<u8>, Failure> {
    let exif = Some(exif.to_vec().into());
    let bytes = bytes.into();
    let file = match format {
        ImageFormat::Jpeg => {
            let mut file = JpegFile::from_bytes(bytes).map_err(bug)?;
            file.set_exif(exif);
            file.encoder().bytes()
        }
        ImageFormat::Png => {
            let mut file = Png::from_bytes(bytes).map_err(bug)?;
            file.set_exif(exif);
            file.encoder().bytes()
        }
        _ => {
            let mut file = WebP::from_bytes(bytes).map_err(bug)?;
            file.set_exif(exif);
            file.encoder().bytes()
        }
    };
    Ok(file.into())
}
