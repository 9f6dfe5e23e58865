//! The properties of an item: ISO/IEC 23008-12, and the AVIF and MIAF specifications.

use super::{
    aperture::{Aperture, ApertureSide, Crop},
    boxes::{FourCc, Meta, Property, Reader},
    coding::{Cicp, Coding, UNSPECIFIED, av1_coding, hevc_coding},
    error::HeifError::{self, Unsupported},
};

/// The brightness of the content that an item announces, in cd/m².
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Brightness {
    /// The brightest pixel (`clli`). 0 means unknown.
    pub brightest: Option<u16>,
    /// The peak of the display that it was graded on (`mdcv`). 0 means unknown.
    pub mastering_peak: Option<u32>,
}

impl Brightness {
    /// The brightest value to expect, if the file tells it.
    pub fn peak(self) -> Option<f32> {
        let mastering = || u16::try_from(self.mastering_peak?).ok().or(Some(u16::MAX));
        let peak = self.brightest.filter(|&peak| peak > 0).or_else(mastering);
        peak.filter(|&peak| peak > 0).map(f32::from)
    }
}

/// A picture's properties, from the container alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeifHeader {
    /// Pixels per row as coded: before cropping and rotation.
    pub width: u32,
    /// Rows as coded: before cropping and rotation.
    pub height: u32,
    pub has_alpha: bool,
    pub coding: Coding,
    /// HEVC; otherwise AV1.
    pub is_hevc: bool,
    /// The larger of picture and tile on each side, in pixels: a single tile may reach far beyond the picture.
    pub largest: (u32, u32),
    /// The length of the file, in bytes.
    pub file_bytes: u64,
    /// The EXIF orientation, 1 to 8, that puts the decoded picture upright.
    pub orientation: u8,
    /// The visible part, if not all of it. Decoding returns only this.
    pub crop: Option<Crop>,
}

impl HeifHeader {
    /// The size of the decoded picture before rotation, in pixels.
    pub fn visible_size(&self) -> (u32, u32) {
        self.crop.map_or((self.width, self.height), |crop| (crop.width, crop.height))
    }

    /// Memory for decoding, in bytes.
    pub fn decode_memory(&self) -> u64 {
        let sample_bytes = if self.coding.depth > 8 || self.is_hevc { 2 } else { 1 };
        // The planes up to three times: a decoder's two (for filters or references), and a copy. Then the
        // pixels, and what the decoder notes about each block.
        let alpha = if self.has_alpha { 3 * sample_bytes } else { 0 };
        let planes = 3 * self.coding.chroma.half_samples_per_pixel() * sample_bytes / 2;
        let pixels = u64::from(self.largest.0) * u64::from(self.largest.1);
        // The coded data: joined, in the decoder's form, and for HEVC without emulation prevention.
        let copies = if self.is_hevc { 3 } else { 2 };
        pixels * (planes + alpha + 4 + 4) + copies * self.file_bytes
    }
}

/// An item's properties, parsed.
#[derive(Default)]
pub(crate) struct ItemProperties<'a> {
    pub size: Option<(u32, u32)>,
    /// By the AV1 decoder's configuration.
    pub av1: Option<Coding>,
    /// By the HEVC decoder's configuration (ISO/IEC 14496-15, 8.3.3.1), and its bytes.
    pub hevc: Option<(Coding, &'a [u8])>,
    pub brightness: Brightness,
    pub icc: Option<&'a [u8]>,
    pub nclx: Option<Cicp>,
    /// Quarter turns anticlockwise.
    pub rotation: Option<u8>,
    /// 0 swaps top and bottom, 1 swaps left and right.
    pub mirror: Option<u8>,
    /// Whether the mirror comes before the rotation in the file.
    mirrors_first: bool,
    pub aperture: Option<Aperture>,
    /// Of an auxiliary image: whether it holds alpha.
    pub holds_alpha: Option<bool>,
}

impl<'a> ItemProperties<'a> {
    pub fn of(meta: &Meta<'a>, id: u32) -> Result<Self, HeifError> {
        let mut properties = Self::default();
        for Property { kind, body, essential } in meta.properties.of(id)? {
            if !properties.add(kind, body)? && essential {
                return Err(Unsupported("an unknown essential property"));
            }
        }
        Ok(properties)
    }

    /// Adds one property; `false` if it is unknown. The first of each kind counts.
    pub fn add(&mut self, kind: FourCc, mut body: Reader<'a>) -> Result<bool, HeifError> {
        match &kind {
            b"ispe" => {
                body.version()?;
                let size = (body.long()?, body.long()?);
                self.size.get_or_insert(size);
            }
            b"av1C" => {
                let [_, _, flags] = body.array()?;
                let coding = av1_coding(flags)?;
                self.av1.get_or_insert(coding);
            }
            b"hvcC" => {
                let coding = hevc_coding(body.0)?;
                self.hevc.get_or_insert((coding, body.0));
            }
            b"colr" => self.add_color(body)?,
            b"irot" => {
                let rotation = body.byte()? & 3;
                self.rotation.get_or_insert(rotation);
            }
            b"imir" => {
                let mirror = body.byte()? & 1;
                self.mirrors_first |= self.mirror.is_none() && self.rotation.is_none();
                self.mirror.get_or_insert(mirror);
            }
            b"clap" => {
                let mut aperture = [0; 8];
                for number in &mut aperture {
                    *number = body.long()?;
                }
                let Self { rotation, mirror, .. } = *self;
                self.aperture.get_or_insert(Aperture { numbers: aperture, rotation, mirror });
            }
            b"auxC" => {
                body.version()?;
                self.holds_alpha.get_or_insert(is_alpha(body.0));
            }
            b"clli" => {
                let brightest = body.short()?;
                self.brightness.brightest.get_or_insert(brightest);
            }
            b"mdcv" => {
                body.take(16)?; // primaries and white
                let peak = body.long()? / 10_000;
                self.brightness.mastering_peak.get_or_insert(peak);
            }
            b"a1op" if body.byte()? != 0 => return Err(Unsupported("operating points")),
            b"lsel" if body.short()? != u16::MAX => return Err(Unsupported("a chosen layer")),
            b"a1op" | b"lsel" | b"a1lx" | b"pasp" | b"pixi" | b"cclv" | b"amve" | b"rloc"
            | b"udes" | b"altt" => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Adds a color property: a profile or code points. There may be one of each.
    pub fn add_color(&mut self, mut body: Reader<'a>) -> Result<(), HeifError> {
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

    /// Takes from a grid's first tile what the grid does not have.
    pub fn complete(&mut self, tile: &Self) {
        (self.av1, self.hevc) = (tile.av1, tile.hevc);
        if self.icc.is_none() && self.nclx.is_none() {
            (self.icc, self.nclx) = (tile.icc, tile.nclx);
        }
        if self.brightness == Brightness::default() {
            self.brightness = tile.brightness;
        }
    }

    /// The rotation and the mirror as an EXIF orientation. HEIC has them in the order of the file (ISO/IEC 23008-12,
    /// 6.5.1), as libheif does; AVIF in that of MIAF, as libavif does: first the rotation.
    pub fn orientation(&self) -> u8 {
        self.orientation_by(self.rotation, self.mirror)
    }

    fn orientation_by(&self, rotation: Option<u8>, mirror: Option<u8>) -> u8 {
        let mut rotation = rotation.unwrap_or(0);
        if self.mirrors_first && self.hevc.is_some() {
            // A rotation after a mirror is the opposite one before it.
            rotation = (4 - rotation) & 3;
        }
        match (rotation, mirror) {
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

    /// The clean aperture in whole pixels of the coded picture. An invalid one is ignored: a picture with its margin
    /// is better than none. HEIC has it rounded, and in the order of the file; AVIF only in whole pixels, and before
    /// rotation and mirror.
    pub fn crop(&self, size: (u32, u32)) -> Option<Crop> {
        let Aperture { numbers, rotation, mirror } = self.aperture?;
        let [wide, wide_by, high, high_by, x, x_by, y, y_by] = numbers;
        let across = ApertureSide { length: (wide, wide_by), offset: (x, x_by) };
        let down = ApertureSide { length: (high, high_by), offset: (y, y_by) };
        if self.hevc.is_none() {
            let (x, width) = across.whole(size.0)?;
            let (y, height) = down.whole(size.1)?;
            return Some(Crop { x, y, width, height });
        }
        let orientation = self.orientation_by(rotation, mirror);
        let turned = if orientation > 4 { (size.1, size.0) } else { size };
        let (x, width) = across.rounded(turned.0, false)?;
        let (y, height) = down.rounded(turned.1, true)?;
        Some(Crop { x, y, width, height }.before(orientation, size))
    }
}

/// Whether an auxiliary image's type means alpha. The type ends with the box or with a zero, which is not searched
/// for: many items may share a long box.
fn is_alpha(kind: &[u8]) -> bool {
    let names: [&[u8]; 2] =
        [b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1"];
    names.iter().any(|name| {
        kind.strip_prefix(*name).is_some_and(|rest| rest.first().is_none_or(|&byte| byte == 0))
    })
}
