//! Decoded planes: luma and chroma as the codec has them.

use super::{
    coding::{Chroma, Cicp},
    error::HeifError::{self, Corrupt, OutOfMemory},
};

/// Samples of one plane, row after row without padding.
#[derive(Debug)]
pub(crate) enum Samples {
    /// 8 bits each.
    Bytes(Vec<u8>),
    /// 9 to 16 bits each.
    Words(Vec<u16>),
}

impl Samples {
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(samples) => samples.len(),
            Self::Words(samples) => samples.len(),
        }
    }

    /// Reads the `row`th row of `out.len()` samples. Rows beyond the plane are not written.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let range = row * out.len()..(row + 1) * out.len();
        match self {
            Self::Bytes(samples) => copy(samples.get(range).unwrap_or_default(), out),
            Self::Words(samples) => copy(samples.get(range).unwrap_or_default(), out),
        }
    }
}

fn copy<T: Copy + Into<f32>>(from: &[T], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = (*from).into();
    }
}

/// A decoded picture before its conversion to RGB.
#[derive(Debug)]
pub(crate) struct Planes {
    /// Width and height in pixels.
    pub size: (u32, u32),
    pub chroma: Chroma,
    /// Bits per sample, 8 to 16.
    pub depth: u8,
    /// The colors that the bitstream declares.
    pub cicp: Cicp,
    /// Luma, and both chroma planes if there are any.
    pub samples: Vec<Samples>,
}

impl Planes {
    /// Checks that every plane has as many samples as the size and the subsampling demand.
    pub fn checked(self) -> Result<Self, HeifError> {
        let (width, height) = self.plane_size(0);
        let (chroma_width, chroma_height) = self.plane_size(1);
        let expected = match self.chroma {
            Chroma::None => vec![width * height],
            _ => vec![width * height, chroma_width * chroma_height, chroma_width * chroma_height],
        };
        let found: Vec<usize> = self.samples.iter().map(Samples::len).collect();
        if found == expected && (8..=16).contains(&self.depth) { Ok(self) } else { Err(Corrupt) }
    }

    /// The columns and rows of a plane: 0 is luma.
    pub fn plane_size(&self, plane: usize) -> (usize, usize) {
        let (width, height) = (self.size.0 as usize, self.size.1 as usize);
        let (across, down) = if plane == 0 { (1, 1) } else { self.chroma.steps() };
        (width.div_ceil(across), height.div_ceil(down))
    }

    /// The value of white, or of full alpha, in full range.
    pub fn most(&self) -> f32 {
        f32::from(u16::MAX >> (16 - self.depth))
    }
}

/// An empty vector with room for `length` values.
pub(crate) fn reserve<T>(length: usize) -> Result<Vec<T>, HeifError> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(length).map_err(|_| OutOfMemory)?;
    Ok(memory)
}
