//! How samples are coded, by the configurations of the codecs and the code points of ITU-T H.273.

use super::error::HeifError::{self, Corrupt, Unsupported};

/// CICP's value for "unspecified", the same for primaries, transfer and matrix.
pub(crate) const UNSPECIFIED: u8 = 2;

/// How samples map to colors, by the code points of ITU-T H.273.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cicp {
    pub primaries: u8,
    pub transfer: u8,
    pub matrix: u8,
    pub full_range: bool,
}

/// How the chroma planes are subsampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chroma {
    /// No chroma: a gray picture, or alpha.
    None,
    /// 4:2:0: half the columns and half the rows.
    Quarter,
    /// 4:2:2: half the columns.
    Half,
    /// 4:4:4.
    Full,
}

impl Chroma {
    /// Twice the number of samples per pixel, over all planes.
    pub fn half_samples_per_pixel(self) -> u64 {
        match self {
            Self::None => 2,
            Self::Quarter => 3,
            Self::Half => 4,
            Self::Full => 6,
        }
    }

    /// How many luma samples a chroma sample spans, across and down.
    pub fn steps(self) -> (usize, usize) {
        match self {
            Self::None | Self::Full => (1, 1),
            Self::Quarter => (2, 2),
            Self::Half => (2, 1),
        }
    }
}

/// Where a subsampled chroma sample lies among the luma samples that it stands for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Siting {
    /// In the middle of them. Decoders assume this unless the file says otherwise.
    #[default]
    Center,
    /// At the left, halfway down.
    Left,
    /// At the first one.
    TopLeft,
}

impl Siting {
    pub fn is_left(self) -> bool {
        self != Self::Center
    }

    pub fn is_top(self) -> bool {
        self == Self::TopLeft
    }
}

/// How an item's samples are coded, by its codec's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Coding {
    /// Bits per sample.
    pub depth: u8,
    pub chroma: Chroma,
    pub siting: Siting,
}

/// The coding from the third byte of an AV1 configuration.
pub(crate) fn av1_coding(flags: u8) -> Result<Coding, HeifError> {
    let depth = match flags >> 5 & 3 {
        0 => 8,
        2 => 10,
        3 => 12,
        _ => return Err(Corrupt),
    };
    let chroma = match (flags >> 4 & 1, flags >> 3 & 1, flags >> 2 & 1) {
        (1, ..) => Chroma::None,
        (0, 1, 1) => Chroma::Quarter,
        (0, 1, _) => Chroma::Half,
        _ => Chroma::Full,
    };
    let siting = match flags & 3 {
        1 => Siting::Left,
        2 => Siting::TopLeft,
        _ => Siting::Center,
    };
    Ok(Coding { depth, chroma, siting })
}

/// The coding from an HEVC configuration. It does not say where chroma lies.
pub(crate) fn hevc_coding(configuration: &[u8]) -> Result<Coding, HeifError> {
    let Some([chroma, luma_depth, chroma_depth]) = configuration.get(16..19) else {
        return Err(Corrupt);
    };
    let chroma = match chroma & 3 {
        0 => Chroma::None,
        1 => Chroma::Quarter,
        2 => Chroma::Half,
        _ => Chroma::Full,
    };
    if chroma != Chroma::None && luma_depth & 7 != chroma_depth & 7 {
        return Err(Unsupported("luma and chroma of different depths"));
    }
    Ok(Coding { depth: 8 + (luma_depth & 7), chroma, siting: Siting::Center })
}

/// The other of the two subsampled positions next to position `at`, and its share in quarters. A subsampled position
/// lies on the first of the two that it stands for if `is_first`, and otherwise between them.
pub(crate) fn neighbor(at: usize, count: usize, is_first: bool) -> (usize, u8) {
    let near = at / 2;
    let next = (near + 1).min(count.saturating_sub(1));
    match (is_first, at.is_multiple_of(2)) {
        (true, true) => (near, 0),
        (true, false) => (next, 2),
        (false, true) => (near.saturating_sub(1), 1),
        (false, false) => (next, 1),
    }
}
