//! What a page's fields say about its pixels. Every combination that is not decoded is named here, before
//! anything is allocated.

use safelight_domain::Failure;

use super::{
    compression::Compression,
    directory::{Directory, Field, tag},
};
use crate::failure::{damaged, unsupported};

/// The most samples per pixel. Pictures of instruments have more; they are no pictures for a screen.
const MAX_SAMPLES: u64 = 64;

/// How a sample is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SampleKind {
    Unsigned,
    Float,
}

/// The meaning of the samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Color {
    WhiteIsZero,
    BlackIsZero,
    Rgb,
    Palette,
    /// 255 is full ink.
    Cmyk,
    YCbCr,
    /// The chroma is signed.
    CieLab,
    /// The chroma has an offset of half the range.
    IccLab,
}

/// What was subtracted from the samples before they were compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Predictor {
    None,
    Horizontal,
    Float,
}

/// Where transparency is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alpha {
    /// The index of the sample.
    pub sample: usize,
    /// The colors are multiplied by it.
    pub is_associated: bool,
}

/// The parts in which the pixels are stored: strips or tiles. Strips are as wide as the page.
#[derive(Clone, Copy)]
pub(super) struct ChunkLayout<'a> {
    pub width: u32,
    pub height: u32,
    pub is_tiled: bool,
    pub across: u32,
    pub down: u32,
    offsets: Field<'a>,
    lengths: Option<Field<'a>>,
}

/// A page that can be decoded.
pub(super) struct Page<'a> {
    pub directory: Directory<'a>,
    pub width: u32,
    pub height: u32,
    /// Bits per sample.
    pub bits: u32,
    /// Samples per pixel, with those that are not shown.
    pub samples: usize,
    pub kind: SampleKind,
    pub color: Color,
    pub alpha: Option<Alpha>,
    pub compression: Compression,
    pub predictor: Predictor,
    /// Each sample has its own chunks.
    pub is_planar: bool,
    /// How many pixels share a chroma sample, across and down. [1, 1] except for YCbCr.
    pub subsampling: [u32; 2],
    pub low_bit_first: bool,
    pub chunks: ChunkLayout<'a>,
}

impl<'a> Page<'a> {
    pub fn read(directory: Directory<'a>) -> Result<Self, Failure> {
        let side = |tag| {
            let side = directory.value(tag).ok_or_else(damaged)?;
            u32::try_from(side).map_err(|_| damaged())
        };
        let (width, height) = (side(tag::IMAGE_WIDTH)?, side(tag::IMAGE_LENGTH)?);
        let compression = Compression::read(&directory)?;
        let samples = samples_per_pixel(&directory)?;
        let color = color(&directory, samples, compression)?;
        let bits = bits(&directory, samples)?;
        let kind = sample_kind(&directory, samples, bits)?;
        let is_planar = directory.value(tag::PLANAR_CONFIGURATION) == Some(2) && samples > 1;
        let page = Self {
            width,
            height,
            bits,
            samples,
            kind,
            color,
            alpha: alpha(&directory, samples, color),
            compression,
            predictor: predictor(&directory, compression, bits, kind)?,
            is_planar,
            subsampling: subsampling(&directory, color),
            low_bit_first: directory.value(tag::FILL_ORDER) == Some(2),
            chunks: ChunkLayout::read(&directory, width, height)?,
            directory,
        };
        page.check_combination()?;
        Ok(page)
    }

    fn check_combination(&self) -> Result<(), Failure> {
        let is_byte = self.bits == 8 && self.kind == SampleKind::Unsigned;
        match self.compression {
            Compression::Fax(_) if self.bits != 1 || (self.samples > 1 && !self.is_planar) => {
                return Err(unsupported("TIFF", "fax compression of more than one bit per pixel"));
            }
            Compression::Jpeg if !is_byte => {
                return Err(unsupported("TIFF", &format!("JPEG of {} bits per sample", self.bits)));
            }
            Compression::Jpeg if !self.is_planar && !matches!(self.samples, 1 | 3 | 4) => {
                return Err(unsupported("TIFF", &format!("JPEG of {} samples", self.samples)));
            }
            _ => {}
        }
        match self.color {
            Color::YCbCr if !is_byte => Err(unsupported("TIFF", "YCbCr of other than 8 bits")),
            Color::YCbCr
                if self.subsampling != [1, 1]
                    && self.compression != Compression::Jpeg
                    && (self.is_planar || self.samples != 3) =>
            {
                Err(unsupported("TIFF", "subsampled YCbCr in planes or with further samples"))
            }
            Color::YCbCr if self.compression == Compression::Jpeg && self.samples > 3 => {
                Err(unsupported("TIFF", "YCbCr JPEGs with further samples"))
            }
            Color::YCbCr if self.compression == Compression::Jpeg && self.is_planar => {
                Err(unsupported("TIFF", "YCbCr JPEGs of one plane each"))
            }
            Color::CieLab | Color::IccLab
                if !matches!(self.bits, 8 | 16) || self.kind != SampleKind::Unsigned =>
            {
                Err(unsupported("TIFF", "Lab colors of other than 8 or 16 bits"))
            }
            Color::Palette if self.bits > 16 || self.kind != SampleKind::Unsigned => {
                Err(unsupported("TIFF", "a palette for samples of more than 16 bits"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the chunks consist of blocks of luma samples with one pair of chroma samples each.
    pub fn has_blocks(&self) -> bool {
        self.subsampling != [1, 1] && self.compression != Compression::Jpeg
    }

    /// Samples per pixel in one chunk.
    pub fn chunk_samples(&self) -> usize {
        if self.is_planar { 1 } else { self.samples }
    }

    /// The bytes of one row of a chunk, or of one row of blocks, without compression.
    pub fn row_bytes(&self) -> u64 {
        let width = u64::from(self.chunks.width);
        if self.has_blocks() {
            let [across, down] = self.subsampling.map(u64::from);
            return width.div_ceil(across) * (across * down + 2);
        }
        (width * self.chunk_samples() as u64 * u64::from(self.bits)).div_ceil(8)
    }

    /// The number of rows of a chunk that are stored together: one, or the height of a block.
    pub fn rows_together(&self) -> u32 {
        if self.has_blocks() { self.subsampling[1] } else { 1 }
    }

    /// The ICC profile, of any length.
    pub fn icc(&self) -> Option<&'a [u8]> {
        Some(self.directory.field(tag::ICC_PROFILE)?.bytes())
    }
}

impl<'a> ChunkLayout<'a> {
    fn read(page: &Directory<'a>, width: u32, height: u32) -> Result<Self, Failure> {
        let is_tiled =
            page.field(tag::TILE_OFFSETS).is_some() || page.field(tag::TILE_WIDTH).is_some();
        let (offsets, lengths) = if is_tiled {
            // Some programs describe tiles and store them where strips are.
            let or = |tag, other| page.field(tag).or_else(|| page.field(other));
            let offsets = or(tag::TILE_OFFSETS, tag::STRIP_OFFSETS);
            (offsets, or(tag::TILE_BYTE_COUNTS, tag::STRIP_BYTE_COUNTS))
        } else {
            (page.field(tag::STRIP_OFFSETS), page.field(tag::STRIP_BYTE_COUNTS))
        };
        let side = |tag| page.value(tag).and_then(|side| u32::try_from(side).ok());
        let (chunk_width, chunk_height) = if is_tiled {
            (side(tag::TILE_WIDTH).unwrap_or(0), side(tag::TILE_LENGTH).unwrap_or(0))
        } else {
            // By default, and by 0, as some programs write, all rows are in one strip.
            let rows = side(tag::ROWS_PER_STRIP).filter(|rows| *rows > 0);
            (width, rows.map_or(height, |rows| rows.min(height)))
        };
        let (Some(offsets), true) = (offsets, chunk_width > 0 && chunk_height > 0) else {
            return Err(damaged());
        };
        Ok(Self {
            width: chunk_width,
            height: chunk_height,
            is_tiled,
            across: width.div_ceil(chunk_width),
            down: height.div_ceil(chunk_height),
            offsets,
            lengths,
        })
    }

    /// The stored bytes of a chunk. Without a length they may extend to the end of the file.
    pub fn bytes(&self, page: &Directory<'a>, index: u64) -> Option<&'a [u8]> {
        let index = usize::try_from(index).ok()?;
        let offset = self.offsets.unsigned(index)?;
        match self.lengths {
            Some(lengths) => page.file().slice(offset, lengths.unsigned(index)?),
            None => page.file().tail(offset),
        }
    }
}

impl Color {
    /// The number of samples that carry color.
    pub fn samples(self) -> usize {
        match self {
            Self::WhiteIsZero | Self::BlackIsZero | Self::Palette => 1,
            Self::Rgb | Self::YCbCr | Self::CieLab | Self::IccLab => 3,
            Self::Cmyk => 4,
        }
    }
}

fn samples_per_pixel(page: &Directory<'_>) -> Result<usize, Failure> {
    let samples = page.value(tag::SAMPLES_PER_PIXEL).unwrap_or(1);
    match usize::try_from(samples) {
        Ok(0) | Err(_) => Err(damaged()),
        Ok(_) if samples > MAX_SAMPLES => {
            Err(unsupported("TIFF", &format!("{samples} samples per pixel")))
        }
        Ok(samples) => Ok(samples),
    }
}

fn bits(page: &Directory<'_>, samples: usize) -> Result<u32, Failure> {
    let Some(field) = page.field(tag::BITS_PER_SAMPLE) else { return Ok(1) };
    let first = field.unsigned(0).ok_or_else(damaged)?;
    // Fewer values than samples: the first counts for all, as in libtiff.
    if (1..field.count().min(samples)).any(|at| field.unsigned(at) != Some(first)) {
        return Err(unsupported("TIFF", "samples of different depths"));
    }
    match u32::try_from(first) {
        Ok(bits @ (1..=16 | 24 | 32 | 64)) => Ok(bits),
        _ => Err(unsupported("TIFF", &format!("{first} bits per sample"))),
    }
}

fn sample_kind(page: &Directory<'_>, samples: usize, bits: u32) -> Result<SampleKind, Failure> {
    // 1 is the default. 4 is "undefined"; a reader treats it, and what it does not know, as unsigned
    // (TIFF 6.0, page 80).
    let field = page.field(tag::SAMPLE_FORMAT);
    let format = |at| field.and_then(|field| field.unsigned(at)).unwrap_or(1);
    let first = format(0);
    let count = field.map_or(1, |field| field.count().min(samples));
    if (1..count).any(|at| format(at) != first) {
        return Err(unsupported("TIFF", "samples of different kinds"));
    }
    match first {
        // Neither TIFF nor practice says which values are black and white.
        2 => Err(unsupported("TIFF", "signed samples")),
        3 if matches!(bits, 16 | 32 | 64) => Ok(SampleKind::Float),
        3 => Err(unsupported("TIFF", &format!("floating-point samples of {bits} bits"))),
        5 | 6 => Err(unsupported("TIFF", "complex samples")),
        _ => Ok(SampleKind::Unsigned),
    }
}

fn color(page: &Directory<'_>, samples: usize, compression: Compression) -> Result<Color, Failure> {
    let color = match page.value(tag::PHOTOMETRIC) {
        Some(0) => Color::WhiteIsZero,
        Some(1) => Color::BlackIsZero,
        Some(2) => Color::Rgb,
        Some(3) => Color::Palette,
        Some(5) if page.value(tag::INK_SET).unwrap_or(1) != 1 => {
            return Err(unsupported("TIFF", "other inks than cyan, magenta, yellow and black"));
        }
        Some(5) => Color::Cmyk,
        Some(6) => Color::YCbCr,
        Some(8) => Color::CieLab,
        Some(9) => Color::IccLab,
        Some(4) => return Err(unsupported("TIFF", "nothing but a transparency mask")),
        Some(10) => return Err(unsupported("TIFF", "ITU Lab colors")),
        Some(32844 | 32845) => return Err(unsupported("TIFF", "LogLuv colors")),
        Some(other) => return Err(unsupported("TIFF", &format!("color model {other}"))),
        // As libtiff guesses.
        None if samples >= 3 => Color::Rgb,
        None if matches!(compression, Compression::Fax(_)) => Color::WhiteIsZero,
        None => Color::BlackIsZero,
    };
    if samples < color.samples() {
        return Err(damaged());
    }
    Ok(color)
}

/// The first further sample that is transparency. Without a field that says so, the sample after the
/// colors is.
fn alpha(page: &Directory<'_>, samples: usize, color: Color) -> Option<Alpha> {
    let first = color.samples();
    let field = page.field(tag::EXTRA_SAMPLES);
    let alpha = |at| {
        let kind = match field {
            Some(field) => field.unsigned(at)?,
            None if at == 0 && color != Color::Cmyk => 2,
            None => 0,
        };
        let sample = first + at;
        matches!(kind, 1 | 2).then_some(Alpha { sample, is_associated: kind == 1 })
    };
    (0..samples.checked_sub(first)?).find_map(alpha)
}

fn predictor(
    page: &Directory<'_>,
    compression: Compression,
    bits: u32,
    kind: SampleKind,
) -> Result<Predictor, Failure> {
    // As in libtiff, the field counts only where the compression can have a predictor.
    if !matches!(compression, Compression::Lzw | Compression::Deflate) {
        return Ok(Predictor::None);
    }
    match page.value(tag::PREDICTOR) {
        None | Some(1) => Ok(Predictor::None),
        Some(2) if matches!(bits, 8 | 16 | 32 | 64) => Ok(Predictor::Horizontal),
        Some(2) => Err(unsupported("TIFF", &format!("a predictor for {bits} bits per sample"))),
        Some(3) if kind == SampleKind::Float => Ok(Predictor::Float),
        Some(3) => Err(unsupported("TIFF", "a floating-point predictor for integers")),
        Some(other) => Err(unsupported("TIFF", &format!("predictor {other}"))),
    }
}

fn subsampling(page: &Directory<'_>, color: Color) -> [u32; 2] {
    if color != Color::YCbCr {
        return [1, 1];
    }
    let field = page.field(tag::YCBCR_SUBSAMPLING);
    // TIFF 6.0, page 91: each is 1, 2 or 4, and 2 by default.
    [0, 1].map(|at| match field.and_then(|field| field.unsigned(at)) {
        Some(1) => 1,
        Some(4) => 4,
        _ => 2,
    })
}
