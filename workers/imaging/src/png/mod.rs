//! PNG, by the `image` crate: its chunks are repaired first, and colors that it passes over are read here.

mod chunk;
mod color;
mod repair;

use std::io::Cursor;

use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};
use safelight_domain::{Failure, Size};

use crate::{
    failure::{damaged, too_much_memory, unsupported_variant},
    limits::area,
    picture::Picture,
};

/// Memory that the decoder may allocate besides the pixels, in bytes: tables, profiles, one text chunk.
const DECODER_OVERHEAD: u64 = 64 << 20;

/// Maximum memory per pixel: 16-bit RGBA, twice, because the decoder keeps a second buffer.
const BYTES_PER_PIXEL: u64 = 16;

/// The size that the header announces, if it is where it should be. The decoder would judge it by memory alone.
pub(super) fn announced_size(bytes: &[u8]) -> Option<Size> {
    let header = bytes.get(8..)?.first_chunk::<16>()?;
    let [_, _, _, _, b'I', b'H', b'D', b'R', size @ ..] = header else { return None };
    let [width, height] =
        [0, 4].map(|at| u32::from_be_bytes([size[at], size[at + 1], size[at + 2], size[at + 3]]));
    Some(Size { width, height })
}

/// Reads the size of a picture, and estimates the memory for decoding it, in bytes.
pub(super) fn header(bytes: &[u8]) -> Result<(Size, u64), Failure> {
    let repaired = repair::repaired(bytes)?;
    let decoder = decoder(&repaired)?;
    let (width, height) = decoder.dimensions();
    // Besides the decoded pixels, a copy: in 8 bits, with color multiplied by alpha, or after tone mapping.
    let is_plain = matches!(decoder.color_type(), ColorType::L8 | ColorType::Rgb8);
    let is_copied = !is_plain || color::has_high_range(&repaired);
    let copy = if is_copied { 4 * area(width, height) } else { 0 };
    let memory = decoder.total_bytes().saturating_add(copy + bytes.len() as u64);
    Ok((Size { width, height }, memory))
}

/// Decodes a picture.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, Failure> {
    let bytes = repair::repaired(bytes)?;
    let mut decoder = decoder(&bytes)?;
    let (width, height) = decoder.dimensions();
    let mut allowed = Limits::no_limits();
    allowed.max_alloc = Some(area(width, height) * BYTES_PER_PIXEL + DECODER_OVERHEAD);
    decoder.set_limits(allowed).map_err(decode_failure)?;
    // An unreadable profile counts as absent.
    let icc = decoder.icc_profile().ok().flatten();
    let image = DynamicImage::from_decoder(decoder).map_err(decode_failure)?;
    let (image, color) = color::resolve(&bytes, icc.as_deref(), image)?;
    Ok(Picture::full(image, color))
}

/// A decoder that has read the header.
fn decoder(bytes: &[u8]) -> Result<impl ImageDecoder + '_, Failure> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), image::ImageFormat::Png);
    let mut limits = Limits::no_limits();
    // It reads all chunks before the pixels here.
    limits.max_alloc = Some(DECODER_OVERHEAD);
    reader.limits(limits);
    reader.into_decoder().map_err(decode_failure)
}

/// A decoder's error as a failure, without its text, which describes internals.
#[allow(clippy::needless_pass_by_value)] // the shape that `map_err` wants
fn decode_failure(error: ImageError) -> Failure {
    match error {
        ImageError::Limits(_) => too_much_memory(),
        ImageError::Unsupported(_) => unsupported_variant(),
        ImageError::Decoding(_)
        | ImageError::IoError(_)
        | ImageError::Parameter(_)
        | ImageError::Encoding(_) => damaged(),
    }
}
