//! Still WebP pictures, decoded by libwebp. Animations are in `animation.rs`.

use std::io::Cursor;

use image::{DynamicImage, RgbImage, RgbaImage};
use image_webp::{DecodingError, WebPDecoder};
use safelight_domain::Failure;

use crate::{
    color::ToSrgb,
    failure::{bug, damaged, too_much_memory, unsupported_variant},
    picture::Picture,
    pixel_layout::{icc_layout, normalize},
};

/// Width and height, and the number of frames: 1 unless the picture is animated.
pub(super) fn header(bytes: &[u8]) -> Result<((u32, u32), u32), Failure> {
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(decode_failure)?;
    let frames = if decoder.is_animated() { decoder.num_frames() } else { 1 };
    Ok((decoder.dimensions(), frames))
}

/// Rejects an animation in which a lossy frame with alpha is coded in another size than its container
/// announces. `image-webp` compares the two only in frames without alpha, and panics if they differ.
pub(super) fn check_frames(bytes: &[u8]) -> Result<(), Failure> {
    for (kind, frame) in Chunks(bytes.get(12..).unwrap_or_default()) {
        // Position, size, duration and flags; then the frame's own chunks.
        let Some((frame_header, parts)) = frame.split_at_checked(16).filter(|_| kind == b"ANMF")
        else {
            continue;
        };
        let mut parts = Chunks(parts);
        let Some((b"ALPH", _)) = parts.next() else { continue };
        // RFC 6386, 9.1: a tag of three bytes, three of a start code, and both sides in 14 bits.
        if let Some((b"VP8 ", &[_, _, _, _, _, _, w, wide, h, high, ..])) = parts.next() {
            let announced = [&frame_header[6..9], &frame_header[9..12]]
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

/// Iterates over the chunks of a RIFF file or of one of its chunks. The last one may be cut short.
struct Chunks<'a>(&'a [u8]);

impl<'a> Iterator for Chunks<'a> {
    type Item = (&'a [u8; 4], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (kind, rest) = self.0.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let content = &rest[..length.min(rest.len())];
        // Chunks are padded to an even length.
        self.0 = rest.get(length.next_multiple_of(2)..).unwrap_or_default();
        Some((kind, content))
    }
}

/// Decodes a picture that is not animated.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, Failure> {
    let mut container = WebPDecoder::new(Cursor::new(bytes)).map_err(decode_failure)?;
    let announced = container.dimensions();
    // An unreadable profile counts as absent.
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
    let image = normalize(image.ok_or_else(|| bug("libwebp returned too few pixels"))?);
    let color = icc.and_then(|icc| ToSrgb::from_icc(&icc, icc_layout(&image)));
    Ok(Picture::full(image, color))
}

/// A decoder's error as a failure.
#[allow(clippy::needless_pass_by_value)] // the shape that `map_err` wants
pub(super) fn decode_failure(error: DecodingError) -> Failure {
    match error {
        DecodingError::MemoryLimitExceeded | DecodingError::ImageTooLarge => too_much_memory(),
        DecodingError::UnsupportedFeature(_) => unsupported_variant(),
        _ => damaged(),
    }
}
