//! AVIF: one AV1 still picture in a HEIF container.
//!
//! ```text
//! bytes ─▶ container   finds the picture's item and its alpha item
//!          boxes       locates items and their data
//!          properties  reads size, colors, rotation and crop of an item
//!       ─▶ bitstream   reads the AV1 sequence header; re_rav1d decodes the planes
//!       ─▶ pixels      8-bit gray, RGB or RGBA, by the `yuv` crate where there is a matrix
//! ```
//!
//! The container is parsed here because the existing crates lack something: mp4parse exposes sizes, mirrors
//! and colors only through raw pointers, avif-parse does not expose them at all. The parser copies nothing
//! and allocates no memory by sizes that the file announces; it searches for a box when it needs it.
//!
//! The AV1 decoder's C-like functions turn a panic into an abort, which no caller can catch: one more reason
//! to decode in a separate process.

mod bitstream;
mod boxes;
mod container;
mod encode;
mod error;
mod pixels;
mod properties;
#[cfg(test)]
mod tests;

use image::DynamicImage;
use moxcms::{CicpColorPrimaries, CicpProfile, MatrixCoefficients, TransferCharacteristics};
use safelight_domain::Failure;

pub(super) use encode::encode;

use self::{
    bitstream::Frame,
    container::{Alpha, Container},
    error::AvifError,
    pixels::{assemble, unpremultiply},
    properties::{AvifHeader, Crop, UNSPECIFIED},
};
use crate::{
    color::ToSrgb,
    picture::Picture,
    pixel_layout::{icc_layout, normalize},
};

/// A decoded picture, cropped but not rotated.
#[derive(Debug)]
struct AvifPicture {
    /// Gray, RGB or RGBA of 8 bits; never premultiplied.
    image: DynamicImage,
    icc: Option<Vec<u8>>,
    /// CICP color primaries, if specified.
    primaries: Option<u8>,
    /// CICP transfer characteristics, if specified: 16 is PQ, 18 is HLG.
    transfer: Option<u8>,
}

/// Reads the header from the container alone.
pub(super) fn header(bytes: &[u8]) -> Result<AvifHeader, AvifError> {
    Container::open(bytes)?.header()
}

/// Decodes the picture, without rotating it.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, Failure> {
    let AvifPicture { image, icc, primaries, transfer } = decode_coded(bytes)?;
    let image = normalize(image);
    let layout = icc_layout(&image);
    let color = match icc {
        Some(icc) => ToSrgb::from_icc(&icc, layout),
        None => cicp(primaries, transfer).and_then(|cicp| ToSrgb::from_cicp(cicp, layout)),
    };
    Ok(Picture::full(image, color))
}

/// The color space in the terms of color profiles. Unspecified values default to sRGB.
fn cicp(primaries: Option<u8>, transfer: Option<u8>) -> Option<CicpProfile> {
    let srgb = (CicpColorPrimaries::Bt709, TransferCharacteristics::Srgb);
    let given = |code: Option<u8>| code.filter(|code| *code != UNSPECIFIED);
    let color_primaries = match given(primaries) {
        Some(code) => CicpColorPrimaries::try_from(code).ok()?,
        None => srgb.0,
    };
    let transfer_characteristics = match given(transfer) {
        // These are camera curves. The curve of the screen is sRGB's, or close enough to it.
        Some(1 | 6 | 14 | 15) | None => srgb.1,
        Some(code) => TransferCharacteristics::try_from(code).ok()?,
    };
    Some(CicpProfile {
        color_primaries,
        transfer_characteristics,
        matrix_coefficients: MatrixCoefficients::Identity,
        full_range: true,
    })
}

fn decode_coded(bytes: &[u8]) -> Result<AvifPicture, AvifError> {
    let container = Container::open(bytes)?;
    let header = container.header()?;
    let size = (header.width, header.height);
    let color = Frame::decode(&container.meta.data(container.meta.primary)?, size)?;
    let alpha = match &container.alpha {
        Some(alpha) => Some(Frame::decode(&container.meta.data(alpha.id)?, size)?),
        None => None,
    };
    let cicp = container.color.nclx.unwrap_or(color.sequence.cicp);
    let mut image = assemble(&color, alpha.as_ref(), cicp)?;
    if let (DynamicImage::ImageRgba8(pixels), Some(Alpha { premultiplied: true, .. })) =
        (&mut image, &container.alpha)
    {
        unpremultiply(pixels);
    }
    if let Some(Crop { x, y, width, height }) = header.crop {
        image = image.crop_imm(x, y, width, height);
    }
    let specified = |value: u8| (value != UNSPECIFIED).then_some(value);
    Ok(AvifPicture {
        image,
        icc: container.color.icc.map(<[u8]>::to_vec),
        primaries: specified(cicp.primaries),
        transfer: specified(cicp.transfer),
    })
}
