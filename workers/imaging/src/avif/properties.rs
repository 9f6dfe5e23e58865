//! The properties of an item: ISO/IEC 23008-12, and the AVIF and MIAF specifications.

use super::{
    boxes::{FourCc, Meta, Property, Reader},
    error::AvifError::{self, Corrupt, Unsupported},
};

/// CICP's value for "unspecified", the same for primaries, transfer and matrix.
pub(super) const UNSPECIFIED: u8 = 2;

/// A picture's properties, from the container alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AvifHeader {
    /// Pixels per row as coded: before cropping and rotation.
    pub width: u32,
    /// Rows as coded: before cropping and rotation.
    pub height: u32,
    pub has_alpha: bool,
    /// Bits per sample as coded: 8, 10 or 12.
    pub bit_depth: u8,
    /// The EXIF orientation, 1 to 8, that puts the decoded picture upright.
    pub orientation: u8,
    /// The visible part, if not all of it. Decoding returns only this.
    pub crop: Option<Crop>,
}

impl AvifHeader {
    /// The size of the decoded picture before rotation, in pixels.
    pub fn visible_size(&self) -> (u32, u32) {
        self.crop.map_or((self.width, self.height), |crop| (crop.width, crop.height))
    }
}

/// The visible part of a coded picture, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Crop {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

/// How samples map to colors, by the code points of ITU-T H.273.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cicp {
    pub primaries: u8,
    pub transfer: u8,
    pub matrix: u8,
    pub full_range: bool,
}

/// An item's properties, parsed.
#[derive(Default)]
pub(super) struct ItemProperties<'a> {
    pub size: Option<(u32, u32)>,
    pub bit_depth: Option<u8>,
    pub icc: Option<&'a [u8]>,
    pub nclx: Option<Cicp>,
    /// Quarter turns anticlockwise.
    pub rotation: u8,
    /// 0 swaps top and bottom, 1 swaps left and right.
    pub mirror: Option<u8>,
    /// The clean aperture's eight numbers.
    pub aperture: Option<[u32; 8]>,
    /// Whether this is an auxiliary image that holds alpha.
    pub is_alpha: bool,
}

impl<'a> ItemProperties<'a> {
    pub fn of(meta: &Meta<'a>, id: u32) -> Result<Self, AvifError> {
        let mut properties = Self::default();
        for Property { kind, body, essential } in meta.properties(id)? {
            if !properties.add(kind, body)? && essential {
                return Err(Unsupported("an unknown essential property"));
            }
        }
        Ok(properties)
    }

    /// Adds one property; `false` if it is unknown. The first of each kind counts.
    pub fn add(&mut self, kind: FourCc, mut body: Reader<'a>) -> Result<bool, AvifError> {
        match &kind {
            b"ispe" => {
                body.version()?;
                let size = (body.long()?, body.long()?);
                self.size.get_or_insert(size);
            }
            b"av1C" => {
                let [_, _, flags] = body.array()?;
                // Overrides `pixi`, which is less exact.
                self.bit_depth = Some(coded_depth(flags)?);
            }
            b"pixi" => {
                body.version()?;
                let depth = *body.0.get(1).ok_or(Corrupt)?;
                self.bit_depth.get_or_insert(depth);
            }
            b"colr" => self.add_color(body)?,
            b"irot" => self.rotation = body.byte()? & 3,
            b"imir" => self.mirror = Some(body.byte()? & 1),
            b"clap" => {
                let mut aperture = [0; 8];
                for number in &mut aperture {
                    *number = body.long()?;
                }
                self.aperture.get_or_insert(aperture);
            }
            b"auxC" => {
                body.version()?;
                let urn = body.0.split(|&byte| byte == 0).next().unwrap_or_default();
                self.is_alpha = urn == b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha"
                    || urn == b"urn:mpeg:hevc:2015:auxid:1";
            }
            b"a1op" if body.byte()? != 0 => return Err(Unsupported("operating points")),
            b"lsel" if body.short()? != u16::MAX => return Err(Unsupported("a chosen layer")),
            b"a1op" | b"lsel" | b"a1lx" | b"pasp" | b"clli" | b"mdcv" | b"cclv" | b"amve" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Adds a color property: a profile or code points. There may be one of each.
    pub fn add_color(&mut self, mut body: Reader<'a>) -> Result<(), AvifError> {
        match &body.array()? {
            b"nclx" => {
                let code = |value: u16| u8::try_from(value).unwrap_or(UNSPECIFIED);
                let cicp = Cicp {
                    primaries: code(body.short()?),
                    transfer: code(body.short()?),
                    matrix: code(body.short()?),
                    full_range: body.byte()? & 0x80 != 0,
                };
                self.nclx.get_or_insert(cicp);
            }
            b"prof" | b"rICC" => {
                self.icc.get_or_insert(body.0);
            }
            _ => {}
        }
        Ok(())
    }

    /// The rotation and then the mirror as an EXIF orientation.
    pub fn orientation(&self) -> u8 {
        match (self.rotation, self.mirror) {
            (0, None) => 1,
            (1, None) => 8,
            (2, None) => 3,
            (_, None) => 6,
            (0, Some(1)) | (2, Some(0)) => 2,
            (0 | 2, _) => 4,
            (1, Some(0)) | (3, Some(1)) => 5,
            _ => 7,
        }
    }

    /// The clean aperture in whole pixels. An aperture that is fractional or not inside is ignored: a picture
    /// with its margin is better than none.
    pub fn crop(&self, (width, height): (u32, u32)) -> Option<Crop> {
        let [wide, wide_by, high, high_by, x, x_by, y, y_by] = self.aperture?;
        let (x, width) = crop_side(width, (wide, wide_by), (x, x_by))?;
        let (y, height) = crop_side(height, (high, high_by), (y, y_by))?;
        Some(Crop { x, y, width, height })
    }
}

/// The bit depth from the third byte of an AV1 configuration.
fn coded_depth(flags: u8) -> Result<u8, AvifError> {
    match flags >> 5 & 3 {
        0 => Ok(8),
        2 => Ok(10),
        3 => Ok(12),
        _ => Err(Corrupt),
    }
}

/// The start and length of one side of a clean aperture. The fractions are its length and the signed
/// distance of its center from the center of the whole side.
fn crop_side(whole: u32, length: (u32, u32), offset: (u32, u32)) -> Option<(u32, u32)> {
    if length.1 == 0 || offset.1 == 0 || !length.0.is_multiple_of(length.1) {
        return None;
    }
    let length = length.0 / length.1;
    let margin = i128::from(whole.checked_sub(length)?);
    // ISO/IEC 14496-12 has the numerator signed, the denominator not.
    let (moved, by) = (i128::from(offset.0.cast_signed()), i128::from(offset.1));
    let (start, by) = (margin * by + 2 * moved, 2 * by);
    if length == 0 || start % by != 0 || !(0..=margin).contains(&(start / by)) {
        return None;
    }
    Some((u32::try_from(start / by).ok()?, length))
}
