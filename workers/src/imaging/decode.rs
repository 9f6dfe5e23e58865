//! Bytes to pixels.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader};
use safelight_common::domain::{ErrorCode, Failure, ImageFormat};

use super::{Limits, jpeg};

/// Memory that a decoder may take beside the pixels, in bytes: tables, profiles, one text chunk.
const DECODER_OVERHEAD: u64 = 64 << 20;

/// Memory per pixel at most: 16-bit RGBA, twice (some decoders keep a second buffer).
const BYTES_PER_PIXEL: u64 = 16;

/// Reads the header: the size as coded, in pixels, within `limits`. `bytes` may be cut off after
/// the header.
pub(super) fn header(
    bytes: &[u8],
    format: ImageFormat,
    limits: Limits,
) -> Result<(u32, u32), Failure> {
    let (width, height) = decoder(bytes, format)?.dimensions();
    limits.check(width, height)?;
    Ok((width, height))
}

/// Decodes a picture (of an animation, the first frame) to one of three layouts: 8-bit grey, RGB,
/// or RGBA; the last only if at least one pixel is not opaque.
pub(super) fn decode(
    bytes: &[u8],
    format: ImageFormat,
    limits: Limits,
) -> Result<DynamicImage, Failure> {
    if format == ImageFormat::Jpeg && !jpeg::is_complete(bytes) {
        return Err(Failure::new(ErrorCode::CorruptImage, "the JPEG ends before its end marker"));
    }
    let mut decoder = decoder(bytes, format)?;
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    let pixels = u64::from(width) * u64::from(height);
    let mut allowed = image::Limits::no_limits();
    allowed.max_alloc = Some(pixels * BYTES_PER_PIXEL + DECODER_OVERHEAD);
    decoder.set_limits(allowed).map_err(failure)?;
    Ok(plain(DynamicImage::from_decoder(decoder).map_err(failure)?))
}

fn decoder<'a>(
    bytes: &'a [u8],
    format: ImageFormat,
) -> Result<impl ImageDecoder + use<'a>, Failure> {
    let format = match format {
        ImageFormat::Jpeg => image::ImageFormat::Jpeg,
        ImageFormat::Png => image::ImageFormat::Png,
        ImageFormat::Gif => image::ImageFormat::Gif,
        ImageFormat::Webp => image::ImageFormat::WebP,
        ImageFormat::Tiff => image::ImageFormat::Tiff,
        ImageFormat::Bmp => image::ImageFormat::Bmp,
        ImageFormat::Avif => image::ImageFormat::Avif,
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = image::Limits::no_limits();
    // PNG reads its chunks up to the pixels right here. The others allocate only when they decode.
    limits.max_alloc = Some(DECODER_OVERHEAD);
    if format != image::ImageFormat::Png {
        limits.max_alloc = None;
    }
    reader.limits(limits);
    reader.into_decoder().map_err(failure)
}

/// Brings sixteen-bit and floating-point samples to eight bits, and drops an alpha channel that
/// says nothing.
fn plain(image: DynamicImage) -> DynamicImage {
    let image = match image {
        DynamicImage::ImageLuma8(_) | DynamicImage::ImageRgb8(_) | DynamicImage::ImageRgba8(_) => {
            image
        }
        DynamicImage::ImageLuma16(_) => DynamicImage::ImageLuma8(image.into_luma8()),
        other if other.color().has_alpha() => DynamicImage::ImageRgba8(other.into_rgba8()),
        other => DynamicImage::ImageRgb8(other.into_rgb8()),
    };
    match &image {
        DynamicImage::ImageRgba8(pixels) if pixels.pixels().all(|pixel| pixel.0[3] == u8::MAX) => {
            DynamicImage::ImageRgb8(image.into_rgb8())
        }
        _ => image,
    }
}

/// A decoder's error as a failure. Its text is left out: it speaks of internals.
fn failure(error: ImageError) -> Failure {
    match error {
        ImageError::Limits(_) => Failure::new(
            ErrorCode::TooManyPixels,
            "decoding the picture would take more memory than its size allows",
        ),
        ImageError::Unsupported(_) => Failure::new(
            ErrorCode::UnsupportedFormat,
            "the picture uses a variant of its format that cannot be decoded",
        ),
        ImageError::Decoding(_)
        | ImageError::IoError(_)
        | ImageError::Parameter(_)
        | ImageError::Encoding(_) => {
            Failure::new(ErrorCode::CorruptImage, "the picture is damaged or cut short")
        }
    }
}
