//! The AV1 bitstream. `re_rav1d` decodes the frame; the sequence header is parsed here, because
//! `re_rav1d` panics on reserved color values. Source: AV1 specification, section 5.5.

use re_rav1d::dav1d::{
    Decoder, Error as Av1Error, Picture, PixelLayout, PlanarImageComponent as Component, Settings,
};

use crate::heif::{
    boxes::Reader,
    coding::{Chroma, Cicp, UNSPECIFIED},
    error::HeifError::{self, Corrupt, OutOfMemory, Unsupported},
    planes::{Planes, Samples, reserve},
};

/// Largest number of frames in an item. A still picture has one, a layered one up to four. More only
/// cost time, and a few bytes can make an expensive frame.
const MAX_FRAMES: usize = 4;

/// Reads numbers that are not aligned to bytes.
pub(super) struct Bits<'a> {
    pub bytes: &'a [u8],
    /// The number of bits read so far.
    pub at: usize,
}

impl Bits<'_> {
    /// A number of up to 32 bits.
    pub fn number(&mut self, bits: u32) -> Result<u32, HeifError> {
        let mut value = 0;
        for _ in 0..bits {
            let byte = self.bytes.get(self.at / 8).ok_or(Corrupt)?;
            value = value << 1 | u32::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Ok(value)
    }

    /// A number of up to 8 bits.
    pub fn small(&mut self, bits: u32) -> Result<u8, HeifError> {
        u8::try_from(self.number(bits)?).map_err(|_| Corrupt)
    }

    pub fn flag(&mut self) -> Result<bool, HeifError> {
        Ok(self.number(1)? == 1)
    }

    pub fn skip(&mut self, bits: u32) {
        self.at += bits as usize;
    }

    /// Skips a number of variable length.
    pub fn skip_variable(&mut self) -> Result<(), HeifError> {
        let mut zeros = 0;
        while !self.flag()? {
            zeros += 1;
        }
        if zeros < 32 {
            self.skip(zeros);
        }
        Ok(())
    }
}

/// The colors of an AV1 sequence header. The decoder's own getters panic on values that the standard
/// reserves.
pub(super) struct SequenceHeader {
    pub cicp: Cicp,
}

impl SequenceHeader {
    /// Finds the sequence header among an item's units (OBUs). Rejects an item with too many frames.
    pub fn find(data: &[u8]) -> Result<Self, HeifError> {
        let mut units = Reader(data);
        let mut sequence = None;
        let mut frames = 0;
        while let Some((kind, body)) = next_obu(&mut units)? {
            match kind {
                1 if sequence.is_none() => sequence = Some(Self::parse(body)?),
                3 | 6 => frames += 1,
                _ => {}
            }
        }
        if frames > MAX_FRAMES {
            return Err(Unsupported("many frames in one item"));
        }
        sequence.ok_or(Corrupt)
    }

    /// Parses a sequence header (AV1, 5.5.1).
    pub fn parse(bytes: &[u8]) -> Result<Self, HeifError> {
        let mut bits = Bits { bytes, at: 0 };
        let profile = bits.number(3)?;
        bits.skip(1); // still_picture
        let reduced = bits.flag()?;
        if reduced {
            bits.skip(5); // seq_level_idx
        } else {
            skip_operating_points(&mut bits)?;
        }
        let side_bits = (bits.number(4)? + 1) + (bits.number(4)? + 1);
        bits.skip(side_bits); // max_frame_width_minus_1, max_frame_height_minus_1
        if !reduced && bits.flag()? {
            bits.skip(4 + 3); // lengths of frame ids
        }
        bits.skip(3); // 128×128 blocks, filter intra, intra edge filter
        if !reduced {
            skip_inter_tools(&mut bits)?;
        }
        bits.skip(3); // superres, CDEF, restoration
        Ok(Self { cicp: read_color(&mut bits, profile)? })
    }
}

/// The next unit (OBU) of a bitstream: its type and its content; `None` at the end.
pub(super) fn next_obu<'a>(units: &mut Reader<'a>) -> Result<Option<(u8, &'a [u8])>, HeifError> {
    if units.0.is_empty() {
        return Ok(None);
    }
    let head = units.byte()?;
    if head & 0x04 != 0 {
        units.byte()?; // which layer
    }
    let mut length = units.0.len();
    if head & 0x02 != 0 {
        let mut size = 0_u64;
        for shift in (0..56).step_by(7) {
            let byte = units.byte()?;
            size |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        length = usize::try_from(size).map_err(|_| Corrupt)?;
    }
    Ok(Some((head >> 3 & 15, units.take(length)?)))
}

/// Skips a sequence header's timing and operating points.
pub(super) fn skip_operating_points(bits: &mut Bits<'_>) -> Result<(), HeifError> {
    let mut delay_bits = None;
    if bits.flag()? {
        bits.skip(32 + 32); // num_units_in_display_tick, time_scale
        if bits.flag()? {
            bits.skip_variable()?; // num_ticks_per_picture_minus_1
        }
        if bits.flag()? {
            delay_bits = Some(bits.number(5)? + 1);
            bits.skip(32 + 5 + 5); // num_units_in_decoding_tick, lengths of times
        }
    }
    let has_display_delay = bits.flag()?;
    for _ in 0..=bits.number(5)? {
        bits.skip(12); // operating_point_idc
        if bits.number(5)? > 7 {
            bits.skip(1); // seq_tier
        }
        if let Some(delay_bits) = delay_bits
            && bits.flag()?
        {
            bits.skip(2 * delay_bits + 1);
        }
        if has_display_delay && bits.flag()? {
            bits.skip(4);
        }
    }
    Ok(())
}

/// Skips a sequence header's tools for frames that depend on others.
pub(super) fn skip_inter_tools(bits: &mut Bits<'_>) -> Result<(), HeifError> {
    bits.skip(4); // interintra, masked, warped motion, dual filter
    let order_hint = bits.flag()?;
    if order_hint {
        bits.skip(2); // joint compound, reference motion vectors
    }
    let chosen_per_frame = bits.flag()?;
    // seq_force_screen_content_tools, then seq_force_integer_mv
    if (chosen_per_frame || bits.flag()?) && !bits.flag()? {
        bits.skip(1);
    }
    if order_hint {
        bits.skip(3);
    }
    Ok(())
}

/// Reads a sequence header's colors (AV1, 5.5.2).
pub(super) fn read_color(bits: &mut Bits<'_>, profile: u32) -> Result<Cicp, HeifError> {
    let high_depth = bits.flag()?;
    if profile == 2 && high_depth {
        bits.skip(1); // twelve_bit
    }
    let monochrome = profile != 1 && bits.flag()?;
    let [primaries, transfer, matrix] = if bits.flag()? {
        [bits.small(8)?, bits.small(8)?, bits.small(8)?]
    } else {
        [UNSPECIFIED; 3]
    };
    // sRGB stored as RGB implies full range.
    let is_srgb = !monochrome && [primaries, transfer, matrix] == [1, 13, 0];
    Ok(Cicp { primaries, transfer, matrix, full_range: is_srgb || bits.flag()? })
}

/// Decodes an item. It must have the `size` that the container announces.
pub(crate) fn decode(data: &[u8], size: (u32, u32)) -> Result<Planes, HeifError> {
    let sequence = SequenceHeader::find(data)?;
    let mut settings = Settings::new();
    settings.set_n_threads(1);
    settings.set_max_frame_delay(1);
    settings.set_all_layers(false); // only the best one of a layered picture
    settings.set_frame_size_limit(size.0.checked_mul(size.1).ok_or(Corrupt)?);
    let mut decoder = Decoder::with_settings(&settings).map_err(av1_failure)?;
    match decoder.send_data(data.to_vec(), None, None, None) {
        Ok(()) | Err(Av1Error::Again) => {}
        Err(error) => return Err(av1_failure(error)),
    }
    // A layered picture is returned only by the second call, once no better layer can follow.
    let picture = match decoder.get_picture() {
        Err(Av1Error::Again) => decoder.get_picture(),
        answer => answer,
    };
    let picture = picture.map_err(av1_failure)?;
    if (picture.width(), picture.height()) != size {
        return Err(Corrupt);
    }
    planes(&picture, size, sequence.cicp)
}

/// Copies the planes without their padding.
fn planes(picture: &Picture, size: (u32, u32), cicp: Cicp) -> Result<Planes, HeifError> {
    let chroma = match picture.pixel_layout() {
        PixelLayout::I400 => Chroma::None,
        PixelLayout::I420 => Chroma::Quarter,
        PixelLayout::I422 => Chroma::Half,
        PixelLayout::I444 => Chroma::Full,
    };
    let depth = u8::try_from(picture.bit_depth()).map_err(|_| Corrupt)?;
    let mut planes = Planes { size, chroma, depth, cicp, samples: Vec::new() };
    let components: &[Component] = match chroma {
        Chroma::None => &[Component::Y],
        _ => &[Component::Y, Component::U, Component::V],
    };
    for (index, &component) in components.iter().enumerate() {
        let (width, height) = planes.plane_size(index);
        let plane = picture.plane(component);
        let stride = picture.stride(component) as usize;
        let sample_bytes = if depth > 8 { 2 } else { 1 };
        if stride < width * sample_bytes {
            return Err(Corrupt);
        }
        let rows = plane.chunks(stride).take(height);
        let rows = rows.filter_map(|row| row.get(..width * sample_bytes));
        planes.samples.push(if sample_bytes == 1 {
            let mut samples = reserve(width * height)?;
            rows.for_each(|row| samples.extend_from_slice(row));
            Samples::Bytes(samples)
        } else {
            let mut samples = reserve(width * height)?;
            rows.for_each(|row| {
                samples.extend(row.as_chunks::<2>().0.iter().map(|pair| u16::from_ne_bytes(*pair)));
            });
            Samples::Words(samples)
        });
    }
    planes.checked()
}

/// The decoder's error in the terms of this module.
pub(super) fn av1_failure(error: Av1Error) -> HeifError {
    match error {
        Av1Error::NotEnoughMemory => OutOfMemory,
        Av1Error::UnsupportedBitstream => Unsupported("this AV1 bitstream"),
        _ => Corrupt,
    }
}
