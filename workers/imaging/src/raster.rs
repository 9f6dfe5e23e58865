//! Formats that the `image` crate decodes: PNG, TIFF, BMP, the first frame of a GIF, and the JPEGs
//! that libjpeg-turbo's interface has no words for.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader};
use moxcms::Layout;
use safelight_domain::{ErrorCode, Failure, ImageFormat};

use super::{bug, colour::ToSrgb, header::damaged, limits::area, picture::Picture};

/// Memory that a decoder may take beside the pixels, in bytes: tables, profiles, one text chunk.
const DECODER_OVERHEAD: u64 = 64 << 20;

/// Memory per pixel at most: 16-bit RGBA, twice (some decoders keep a second buffer).
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
        ImageFormat::Webp | ImageFormat::Avif => return Err(bug("not this decoder's format")),
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = image::Limits::no_limits();
    // PNG reads its chunks up to the pixels right here. Some of the others count the pixels too, so
    // they get their limit once the size is known.
    if format == image::ImageFormat::Png {
        limits.max_alloc = Some(DECODER_OVERHEAD);
    }
    reader.limits(limits);
    reader.into_decoder().map_err(failure)
}

/// Decodes a picture; of an animation, the first frame.
pub(super) fn decode(bytes: &[u8], format: ImageFormat) -> Result<Picture, Failure> {
    let mut decoder = decoder(bytes, format)?;
    let (width, height) = decoder.dimensions();
    let mut allowed = image::Limits::no_limits();
    allowed.max_alloc = Some(area(width, height) * BYTES_PER_PIXEL + DECODER_OVERHEAD);
    decoder.set_limits(allowed).map_err(failure)?;
    // A profile that cannot be read is as good as none.
    let icc = decoder.icc_profile().ok().flatten();
    let image = plain(DynamicImage::from_decoder(decoder).map_err(failure)?);
    let colour = icc.and_then(|icc| ToSrgb::from_icc(&icc, layout(&image)));
    Ok(Picture::full(image, colour))
}

/// The layout of a plain picture, for colour profiles.
pub(super) fn layout(image: &DynamicImage) -> Layout {
    match image {
        DynamicImage::ImageLuma8(_) => Layout::Gray,
        DynamicImage::ImageRgba8(_) => Layout::Rgba,
        _ => Layout::Rgb,
    }
}

/// Brings a picture to one of three layouts, 8-bit grey, RGB or RGBA; the last only if at least one
/// pixel is not opaque.
pub(super) fn plain(image: DynamicImage) -> DynamicImage {
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
#[allow(clippy::needless_pass_by_value)] // the shape that `map_err` wants
pub(super) fn failure(error: ImageError) -> Failure {
    match error {
        ImageError::Limits(_) => Failure::new(
            ErrorCode::TooMuchMemory,
            "decoding the picture would take more memory than its size allows",
        ),
        ImageError::Unsupported(_) => Failure::new(
            ErrorCode::UnsupportedFormat,
            "the picture uses a variant of its format that cannot be decoded",
        ),
        ImageError::Decoding(_)
        | ImageError::IoError(_)
        | ImageError::Parameter(_)
        | ImageError::Encoding(_) => damaged(),
    }
}
