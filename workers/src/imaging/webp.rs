//! WebP by libwebp; animations are in [`super::animation`].

use std::io::Cursor;

use image::{DynamicImage, RgbImage, RgbaImage};
use image_webp::{DecodingError, WebPDecoder};
use safelight_common::domain::{ErrorCode, Failure};

use super::{
    bug,
    colour::ToSrgb,
    header::damaged,
    picture::Picture,
    raster::{layout, plain},
};

/// Width and height, and the number of frames; 1 unless it is animated.
pub(super) fn header(bytes: &[u8]) -> Result<((u32, u32), u32), Failure> {
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(failure)?;
    let frames = if decoder.is_animated() { decoder.num_frames() } else { 1 };
    Ok((decoder.dimensions(), frames))
}

/// Decodes a picture that is not animated.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, Failure> {
    let mut container = WebPDecoder::new(Cursor::new(bytes)).map_err(failure)?;
    let announced = container.dimensions();
    // A profile that cannot be read is as good as none.
    let icc = container.icc_profile().ok().flatten();
    let decoded = webp::Decoder::new(bytes).decode().ok_or_else(damaged)?;
    let (width, height) = (decoded.width(), decoded.height());
    if (width, height) != announced {
        return Err(damaged());
    }
    let image = if decoded.is_alpha() {
        RgbaImage::from_raw(width, height, decoded.to_vec()).map(DynamicImage::from)
    } else {
        RgbImage::from_raw(width, height, decoded.to_vec()).map(DynamicImage::from)
    };
    let image = plain(image.ok_or_else(|| bug("libwebp gave too few pixels"))?);
    let colour = icc.and_then(|icc| ToSrgb::from_icc(&icc, layout(&image)));
    Ok(Picture::full(image, colour))
}

/// A decoder's error as a failure.
#[allow(clippy::needless_pass_by_value)] // the shape that `map_err` wants
pub(super) fn failure(error: DecodingError) -> Failure {
    match error {
        DecodingError::MemoryLimitExceeded | DecodingError::ImageTooLarge => Failure::new(
            ErrorCode::TooMuchMemory,
            "decoding the picture would take more memory than its size allows",
        ),
        DecodingError::UnsupportedFeature(_) => Failure::new(
            ErrorCode::UnsupportedFormat,
            "the picture uses a variant of its format that cannot be decoded",
        ),
        _ => damaged(),
    }
}
