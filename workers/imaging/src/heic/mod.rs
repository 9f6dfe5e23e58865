//! HEIC: HEVC still pictures, decoded by `heifer-hevc-dec`. `heif` reads the container.

#[cfg(test)]
mod tests;

use std::panic::catch_unwind;

use heifer_hevc_dec::{
    Error as HevcError,
    decoder::{DecodeOptions, decode_picture},
    nal::NalUnit,
    params::{ParameterSets, Vui},
    recon::Frame,
};

use crate::heif::{
    boxes::Reader,
    coding::{Chroma, Cicp, UNSPECIFIED},
    error::HeifError::{self, Corrupt, Unsupported},
    planes::{Planes, Samples, reserve},
};

/// By how many columns and rows a coded picture may exceed what its container announces: the largest coding
/// block, to which encoders pad.
const MAX_PADDING: u32 = 64;

/// Largest number of parameter sets in a configuration.
const MAX_PARAMETER_SETS: usize = 64;

/// Largest number of units in an item: the standard allows 600 slices (H.265, A.4.1). The decoder notes some 40 bytes
/// about each, which may be 3 in the file.
const MAX_UNITS: usize = 4096;

const START_CODE: [u8; 4] = [0, 0, 0, 1];

/// How the decoder says that a picture exceeds the size that its container announces.
const TOO_LARGE: &str = "picture larger than the configured size limit";

/// Decodes an item that has this configuration (`hvcC`). It must have the `size` that the container announces,
/// or be padded at the right and at the bottom.
pub(crate) fn decode(
    data: &[u8],
    configuration: &[u8],
    size: (u32, u32),
) -> Result<Planes, HeifError> {
    let (stream, colors) = byte_stream(data, configuration)?;
    let most = |side: u32| u64::from(side) + u64::from(MAX_PADDING);
    let options = DecodeOptions {
        max_pixels: most(size.0).saturating_mul(most(size.1)),
        ..DecodeOptions::default()
    };
    // The decoder checks what it indexes, but a panic would count as a crash and be retried.
    let frame = catch_unwind(|| decode_picture(&stream, options)).map_err(|_| Corrupt)?;
    drop(stream);
    planes(frame.map_err(hevc_failure)?, size, colors)
}

/// The bitstream with start codes (H.265, annex B), and the colors that it declares.
fn byte_stream(data: &[u8], configuration: &[u8]) -> Result<(Vec<u8>, Cicp), HeifError> {
    let mut reader = Reader(configuration);
    let length_bytes = 1 + usize::from(reader.take(22)?[21] & 3);
    let start_codes = START_CODE.len() * (MAX_PARAMETER_SETS + MAX_UNITS);
    let mut stream = reserve(configuration.len() + data.len() + start_codes)?;
    let mut declared = None;
    let mut count = 0;
    for _ in 0..reader.byte()? {
        reader.byte()?; // the type of the units, which they repeat
        for _ in 0..reader.short()? {
            let length = usize::from(reader.short()?);
            let unit = reader.take(length)?;
            count += 1;
            if count > MAX_PARAMETER_SETS {
                return Err(Corrupt);
            }
            append(&mut stream, unit);
            // An unusable one fails when a slice refers to it.
            let parsed = catch_unwind(|| {
                let mut sets = ParameterSets::default();
                sets.add(&NalUnit::parse(unit).ok()?).ok()?;
                sets.sps.into_iter().flatten().find_map(|sps| sps.vui)
            });
            declared = declared.or(parsed.ok().flatten().as_ref().map(colors));
        }
    }
    let mut units = Reader(data);
    let mut count = 0;
    while !units.0.is_empty() {
        let length = usize::try_from(units.number(length_bytes)?).map_err(|_| Corrupt)?;
        let unit = units.take(length)?;
        if unit.is_empty() {
            continue;
        }
        count += 1;
        if count > MAX_UNITS {
            return Err(Unsupported("many units in one item"));
        }
        append(&mut stream, unit);
    }
    Ok((stream, declared.unwrap_or(UNDECLARED)))
}

fn append(stream: &mut Vec<u8>, unit: &[u8]) {
    stream.extend(START_CODE);
    stream.extend(unit);
}

/// The colors of a bitstream that declares none.
const UNDECLARED: Cicp =
    Cicp { primaries: UNSPECIFIED, transfer: UNSPECIFIED, matrix: UNSPECIFIED, full_range: false };

fn colors(vui: &Vui) -> Cicp {
    Cicp {
        primaries: vui.colour_primaries,
        transfer: vui.transfer_characteristics,
        matrix: vui.matrix_coeffs,
        full_range: vui.video_full_range_flag,
    }
}

/// The decoder's result without the padding.
fn planes(frame: Frame, size: (u32, u32), cicp: Cicp) -> Result<Planes, HeifError> {
    let chroma = match frame.chroma_format {
        0 => Chroma::None,
        1 => Chroma::Quarter,
        2 => Chroma::Half,
        _ => Chroma::Full,
    };
    if chroma != Chroma::None && frame.bit_depth[0] != frame.bit_depth[1] {
        return Err(Unsupported("luma and chroma of different depths"));
    }
    let coded = (frame.widths[0], frame.heights[0]);
    let fits = |coded: u32, announced: u32| {
        coded.checked_sub(announced).is_some_and(|padding| padding < MAX_PADDING)
    };
    if !fits(coded.0, size.0) || !fits(coded.1, size.1) {
        return Err(Corrupt);
    }
    let count = if chroma == Chroma::None { 1 } else { 3 };
    let mut planes = Planes {
        size,
        chroma,
        depth: frame.bit_depth[0],
        cicp,
        samples: Vec::with_capacity(count),
    };
    for (index, samples) in frame.planes.into_iter().take(count).enumerate() {
        let (width, height) = planes.plane_size(index);
        let samples = cut(samples, frame.widths[index] as usize, (width, height))?;
        planes.samples.push(if planes.depth == 8 {
            Samples::Bytes(samples.iter().map(|sample| byte(*sample)).collect())
        } else {
            Samples::Words(samples)
        });
    }
    planes.checked()
}

/// A sample of 8 bits.
fn byte(sample: u16) -> u8 {
    sample.try_into().unwrap_or(u8::MAX)
}

/// The upper left part of a plane.
fn cut(
    mut samples: Vec<u16>,
    stride: usize,
    (width, height): (usize, usize),
) -> Result<Vec<u16>, HeifError> {
    if samples.len() < stride * height || width > stride {
        return Err(Corrupt);
    }
    if width < stride {
        for row in 1..height {
            samples.copy_within(row * stride..row * stride + width, row * width);
        }
    }
    samples.truncate(width * height);
    Ok(samples)
}

#[allow(clippy::needless_pass_by_value)] // the shape that `map_err` wants
fn hevc_failure(error: HevcError) -> HeifError {
    match error {
        HevcError::Unimplemented(what) if what != TOO_LARGE => Unsupported(what),
        HevcError::Unimplemented(_)
        | HevcError::UnexpectedEof
        | HevcError::Invalid(_)
        | HevcError::HashMismatch(_) => Corrupt,
    }
}
