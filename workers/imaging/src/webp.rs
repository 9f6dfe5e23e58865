//! WebP by libwebp; animations are in [`super::animation`].

use std::io::Cursor;

use image::{DynamicImage, RgbImage, RgbaImage};
use image_webp::{DecodingError, WebPDecoder};
use safelight_domain::{ErrorCode, Failure};

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

/// Refuses an animation of which a lossy frame with alpha is coded in another size than its container
/// says: `image-webp` compares the two only where there is no alpha, and panics where they differ.
pub(super) fn check_frames(bytes: &[u8]) -> Result<(), Failure> {
    for (kind, frame) in Chunks(bytes.get(12..).unwrap_or_default()) {
        // Place, size, duration and flags; then the frame's own chunks.
        let Some((about, parts)) = frame.split_at_checked(16).filter(|_| kind == b"ANMF") else {
            continue;
        };
        let mut parts = Chunks(parts);
        let Some((b"ALPH", _)) = parts.next() else { continue };
        // RFC 6386, 9.1: a tag of three bytes, three of a start code, and both sides in 14 bits.
        if let Some((b"VP8 ", &[_, _, _, _, _, _, w, wide, h, high, ..])) = parts.next() {
            let announced = [&about[6..9], &about[9..12]]
                .map(|side| u32::from_le_bytes([side[0], side[1], side[2], 0]) + 1);
            let coded =
                [[w, wide], [h, high]].map(|side| u32::from(u16::from_le_bytes(side) & 0x3FFF));
            if announced != coded {
                return Err(damaged());
            }
        }
    }
    Ok(())
}

/// The chunks of a RIFF file or of one of its chunks; the last one may be cut short.
struct Chunks<'a>(&'a [u8]);

impl<'a> Iterator for Chunks<'a> {
    type Item = (&'a [u8; 4], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (kind, rest) = self.0.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let content = &rest[..length.min(rest.len())];
        // Filled up to an even length.
        self.0 = rest.get(length.next_multiple_of(2)..).unwrap_or_default();
        Some((kind, content))
    }
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
