//! The items of an AVIF file that make its picture: colors and alpha (ISO/IEC 23008-12, and the AVIF and MIAF
//! specifications).

use super::{
    boxes::Meta,
    error::AvifError::{self, Corrupt, Unsupported},
    properties::{AvifHeader, ItemProperties},
};

/// Largest number of samples of a picture. Beyond it the decoder's 32-bit sums would overflow.
const MAX_SAMPLES: u32 = 1 << 30;

/// Largest number of candidates for the alpha item.
const MAX_AUXILIARIES: usize = 16;

/// The item that holds a picture's alpha.
pub(super) struct Alpha {
    pub id: u32,
    /// Whether the colors are multiplied by it.
    pub premultiplied: bool,
}

/// A file whose picture and alpha items are known.
pub(super) struct Container<'a> {
    pub meta: Meta<'a>,
    pub color: ItemProperties<'a>,
    pub size: (u32, u32),
    pub alpha: Option<Alpha>,
}

impl<'a> Container<'a> {
    /// Reads everything that is needed before decoding.
    pub fn open(file: &'a [u8]) -> Result<Self, AvifError> {
        let meta = Meta::open(file)?;
        meta.require_av1(meta.primary)?;
        let color = ItemProperties::of(&meta, meta.primary)?;
        let size = color.size.ok_or(Corrupt)?;
        match size.0.checked_mul(size.1) {
            Some(0) => return Err(Corrupt),
            Some(1..=MAX_SAMPLES) => {}
            _ => return Err(Unsupported("more than 2³⁰ pixels")),
        }
        let alpha = find_alpha(&meta, size)?;
        Ok(Self { meta, color, size, alpha })
    }

    pub fn header(&self) -> Result<AvifHeader, AvifError> {
        let (width, height) = self.size;
        Ok(AvifHeader {
            width,
            height,
            has_alpha: self.alpha.is_some(),
            bit_depth: match self.color.bit_depth.ok_or(Corrupt)? {
                depth @ (8 | 10 | 12) => depth,
                _ => return Err(Unsupported("bit depth")),
            },
            orientation: self.color.orientation(),
            crop: self.color.crop(self.size),
        })
    }
}

/// Finds the alpha item of the primary item. It must have the same size.
fn find_alpha(meta: &Meta<'_>, size: (u32, u32)) -> Result<Option<Alpha>, AvifError> {
    let mut candidates = Vec::new();
    meta.each_reference(|kind, from, to| {
        if kind == *b"auxl" && to == meta.primary && candidates.len() < MAX_AUXILIARIES {
            candidates.push(from);
        }
    })?;
    for id in candidates {
        // Other auxiliary items, such as a depth map, are not needed and may be invalid.
        let Ok(properties) = ItemProperties::of(meta, id) else { continue };
        if !properties.is_alpha {
            continue;
        }
        meta.require_av1(id)?;
        if properties.size != Some(size) {
            return Err(Unsupported("alpha of another size"));
        }
        let mut premultiplied = false;
        meta.each_reference(|kind, from, to| {
            premultiplied |= kind == *b"prem" && (from, to) == (meta.primary, id);
        })?;
        return Ok(Some(Alpha { id, premultiplied }));
    }
    Ok(None)
}
