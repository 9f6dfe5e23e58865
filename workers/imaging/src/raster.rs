//! Formats that the `image` crate decodes: PNG, TIFF, BMP, the first frame of a GIF, and JPEG variants
//! that libjpeg-turbo's interface does not support.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader};
use safelight_domain::{Failure, ImageFormat};

use crate::{
    color::ToSrgb,
    failure::{bug, damaged, too_much_memory, unsupported_variant},
    limits::area,
    picture::Picture,
    pixel_layout::{icc_layout, normalize},
};

/// Memory that a decoder may allocate besides the pixels, in bytes: tables, profiles, one text chunk.
const DECODER_OVERHEAD: u64 = 64 << 20;

/// Maximum memory per pixel: 16-bit RGBA, twice, because some decoders keep a second buffer.
const BYTES_PER_PIXEL: u64 = 16;

/// A decoder that has read the header.
pub(super) fn decoder(
    bytes: &[u8],
    format: ImageFormat,
) -> Result<impl ImageDecoder + '_, Failure> {
    let format = match format {
        ImageFormat::Jpeg => image::ImageFormat::Jpeg,
        ImageFormat::Png => image::ImageFormat::Png,
        ImageFormat::Gif => image::ImageFormat::Gif,
        ImageFormat::Tiff => image::ImageFormat::Tiff,
        ImageFormat::Bmp => image::ImageFormat::Bmp,
        ImageFormat::Webp | ImageFormat::Avif => {
            return Err(bug("the image crate does not decode this format"));
        }
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = image::Limits::no_limits();
    // The PNG decoder reads all chunks before the pixels here. Others count pixels against the limit,
    // so they get one once the size is known.
    if format == image::ImageFormat::Png {
        limits.max_alloc = Some(DECODER_OVERHEAD);
    }
    reader.limits(limits);
    reader.into_decoder().map_err(decode_failure)
}

/// Decodes a picture, or the first frame of an animation.
pub(super) fn decode(bytes: &[u8], format: ImageFormat) -> Result<Picture, Failure> {
    let mut decoder = decoder(bytes, format)?;
    let (width, height) = decoder.dimensions();
    let mut allowed = image::Limits::no_limits();
    allowed.max_alloc = Some(area(width, height) * BYTES_PER_PIXEL + DECODER_OVERHEAD);
    decoder.set_limits(allowed).map_err(decode_failure)?;
    // An unreadable profile counts as absent.
    let icc = decoder.icc_profile().ok().flatten();
    let image = normalize(DynamicImage::from_decoder(decoder).map_err(decode_failure)?);
    let color = icc.and_then(|icc| ToSrgb::from_icc(&icc, icc_layout(&image)));
    Ok(Picture::full(image, color))
}

/// A decoder's error as a failure, without its text, which describes internals.
#[allow(clippy::needless_pass_by_value)] // the shape that `map_err` wants
pub(super) fn decode_failure(error: ImageError) -> Failure {
    match error {
        ImageError::Limits(_) => too_much_memory(),
        ImageError::Unsupported(_) => unsupported_variant(),
        ImageError::Decoding(_)
        | ImageError::IoError(_)
        | ImageError::Parameter(_)
        | ImageError::Encoding(_) => damaged(),
    }
}
