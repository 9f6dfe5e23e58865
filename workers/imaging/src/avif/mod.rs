//! AVIF: one AV1 still picture in a HEIF container.
//!
//! ```text
//! bytes ─▶ container   which item is the picture, which its alpha, what the boxes say of them
//!       ─▶ bitstream   what the AV1 sequence header says; re_rav1d gives the planes
//!       ─▶ pixels      8-bit grey, RGB or RGBA, by the `yuv` crate where there is a matrix
//! ```
//!
//! The container is read here: of the known crates, mp4parse gives sizes, mirrors and colours only by
//! raw pointers, and avif-parse does not give them at all. Nothing is copied and nothing is allocated
//! by what the file claims; a box is looked for where it is needed.
//!
//! The AV1 decoder's C-like functions turn a panic within them into an abort, which no caller can
//! catch: one more reason to decode in a process that may die.

mod bitstream;
mod container;
mod encode;
mod pixels;
#[cfg(test)]
mod tests;

use image::DynamicImage;
use moxcms::{CicpColorPrimaries, CicpProfile, MatrixCoefficients, TransferCharacteristics};
use safelight_domain::{ErrorCode, Failure};
use thiserror::Error;

pub(super) use encode::encode;

use self::{
    bitstream::Frame,
    container::{Alpha, Container},
    pixels::{assemble, unpremultiply},
};
use super::{
    colour::ToSrgb,
    header::damaged,
    picture::Picture,
    raster::{layout, plain},
};

/// CICP's "unspecified", of primaries, transfer and matrix alike.
const UNSPECIFIED: u8 = 2;

/// Why a picture was not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum AvifError {
    /// The file is damaged, or was never an AVIF.
    #[error("the file is damaged")]
    Corrupt,
    /// The file may be in order, but needs what this module does not do.
    #[error("the file uses what is not supported: {0}")]
    Unsupported(&'static str),
    /// There was no memory for the picture.
    #[error("out of memory")]
    OutOfMemory,
}

impl From<AvifError> for Failure {
    fn from(error: AvifError) -> Self {
        match error {
            AvifError::Corrupt => damaged(),
            AvifError::Unsupported(what) => Failure::new(
                ErrorCode::UnsupportedFormat,
                format!("the AVIF cannot be decoded here: {what}"),
            ),
            AvifError::OutOfMemory => {
                Failure::new(ErrorCode::DecoderOutOfMemory, "decoding would take too much memory")
            }
        }
    }
}

/// What the container says of its picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AvifHeader {
    /// Pixels per row as coded: before the crop and the turn.
    pub width: u32,
    /// Rows as coded: before the crop and the turn.
    pub height: u32,
    /// Whether there is an alpha plane.
    pub has_alpha: bool,
    /// Bits per sample as coded: 8, 10 or 12.
    pub bit_depth: u8,
    /// How to turn the decoded picture, as an EXIF orientation: 1 to 8.
    pub turn: u8,
    /// The part that is to be shown, if not all: only this is decoded.
    pub crop: Option<Crop>,
}

impl AvifHeader {
    /// The size of the decoded picture, not turned, in pixels.
    pub fn shown(&self) -> (u32, u32) {
        self.crop.map_or((self.width, self.height), |crop| (crop.width, crop.height))
    }
}

/// The part of a coded picture that is to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crop {
    /// The first column.
    pub x: u32,
    /// The first row.
    pub y: u32,
    /// Pixels per row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// A decoded picture, cropped but not turned.
#[derive(Debug)]
struct AvifPicture {
    /// Grey, RGB or RGBA of 8 bits; never premultiplied.
    image: DynamicImage,
    /// The ICC profile.
    icc: Option<Vec<u8>>,
    /// CICP colour primaries, if specified.
    primaries: Option<u8>,
    /// CICP transfer characteristics, if specified: 16 is PQ, 18 is HLG.
    transfer: Option<u8>,
}

/// Reads the header from the container alone.
pub(super) fn header(bytes: &[u8]) -> Result<AvifHeader, AvifError> {
    Container::open(bytes)?.header()
}

/// Decodes the picture, without turning it.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, Failure> {
    let AvifPicture { image, icc, primaries, transfer } = decode_coded(bytes)?;
    let image = plain(image);
    let layout = layout(&image);
    let colour = match icc {
        Some(icc) => ToSrgb::from_icc(&icc, layout),
        None => cicp(primaries, transfer).and_then(|cicp| ToSrgb::from_cicp(cicp, layout)),
    };
    Ok(Picture::full(image, colour))
}

/// The colours in the terms of profiles; what is not specified is that of sRGB.
fn cicp(primaries: Option<u8>, transfer: Option<u8>) -> Option<CicpProfile> {
    let srgb = (CicpColorPrimaries::Bt709, TransferCharacteristics::Srgb);
    let given = |code: Option<u8>| code.filter(|code| *code != UNSPECIFIED);
    let color_primaries = match given(primaries) {
        Some(code) => CicpColorPrimaries::try_from(code).ok()?,
        None => srgb.0,
    };
    let transfer_characteristics = match given(transfer) {
        // Video's curve is that of the camera; the screen's is sRGB's, or near enough to it.
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
    let colour = Frame::decode(&container.meta.data(container.meta.primary)?, size)?;
    let alpha = match &container.alpha {
        Some(alpha) => Some(Frame::decode(&container.meta.data(alpha.id)?, size)?),
        None => None,
    };
    let cicp = container.colour.nclx.unwrap_or(colour.sequence.cicp);
    let mut image = assemble(&colour, alpha.as_ref(), cicp)?;
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
        icc: container.colour.icc.map(<[u8]>::to_vec),
        primaries: specified(cicp.primaries),
        transfer: specified(cicp.transfer),
    })
}
