//! BMP: the headers of Windows and OS/2, 1 to 32 bits, run lengths, bit fields. Where files are wrong, they are
//! read as browsers and Pillow read them.

mod header;
mod pixels;

use safelight_domain::{Failure, Size};

use crate::{
    color::ToSrgb,
    failure::damaged,
    limits::area,
    picture::Picture,
    pixel_layout::{icc_layout, normalize},
};
use header::Header;

/// The size, and the memory for decoding in bytes.
pub(super) fn header(bytes: &[u8]) -> Result<(Size, u64), Failure> {
    let header = Header::read(bytes)?;
    let pixels = area(header.width, header.height);
    // RGBA, and its copy without alpha.
    Ok((Size { width: header.width, height: header.height }, pixels.saturating_mul(7)))
}

/// Decodes a picture. The caller has checked its size and memory.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, Failure> {
    let header = Header::read(bytes)?;
    let image = normalize(pixels::decode(&header).ok_or_else(damaged)?);
    let icc = header.icc.and_then(|icc| ToSrgb::from_icc(icc, icc_layout(&image)));
    Ok(Picture::full(image, icc))
}
