//! Decodes the chunks of a page into one picture.

use image::{DynamicImage, GrayImage, RgbImage, RgbaImage};
use moxcms::Layout;
use safelight_domain::Failure;

use super::{
    blocks,
    compression::{self, Compression},
    directory::tag,
    jpeg::{JpegChunks, first_keeps_coefficients},
    lab,
    page::{Color, Page, SampleKind},
    samples::{SampleReader, unpredict},
};
use crate::{
    color::{ToSrgb, uncalibrated_cmyk},
    failure::{bug, damaged},
    limits::area,
    picture::Picture,
    pixel_layout::{icc_layout, normalize},
};

/// The samples that are shown, in 8 bits each and pixel by pixel: colors, then alpha if there is one.
struct PagePixels {
    samples: Vec<u8>,
    width: usize,
    height: usize,
    channels: usize,
}

/// Memory for decoding a page, in bytes: the pixels, copies of them in other color models, and one chunk
/// with and without compression.
pub(super) fn decode_memory(page: &Page<'_>) -> u64 {
    // A header may announce any size; its limits are checked after this.
    let pixels = area(page.width, page.height);
    let per_pixel = match page.color {
        Color::BlackIsZero | Color::WhiteIsZero | Color::Rgb if page.alpha.is_none() => 0,
        _ => 8,
    };
    let shown = pixels.saturating_mul(channels(page) as u64 + per_pixel);
    let rows = page.chunks.height.div_ceil(page.rows_together());
    let chunk = page.row_bytes().saturating_mul(rows.into());
    let expanded = if page.has_blocks() { area(page.chunks.width, page.chunks.height) } else { 0 };
    let total =
        shown.saturating_add(chunk.saturating_mul(2)).saturating_add(expanded.saturating_mul(3));
    if page.compression != Compression::Jpeg {
        return total;
    }
    // A copy of the stored bytes with the tables of the page, and coefficients of 16 bits if they are kept.
    let stored = page.directory.file().tail(0).map_or(0, <[u8]>::len);
    let coefficients = if first_keeps_coefficients(page) { chunk.saturating_mul(2) } else { 0 };
    total.saturating_add(coefficients).saturating_add(stored as u64)
}

/// Decodes a page.
pub(super) fn decode(page: &Page<'_>) -> Result<Picture, Failure> {
    let mut pixels = PagePixels::decode(page)?;
    if page.alpha.is_some_and(|alpha| alpha.is_associated) {
        pixels.divide_by_alpha();
    }
    let alpha = page.alpha.map(|_| pixels.split_alpha());
    let icc = page.icc();
    let mut color = None;
    let image = match page.color {
        Color::BlackIsZero | Color::WhiteIsZero => {
            let gray = gray(pixels, page.color == Color::WhiteIsZero, page)?;
            match icc.and_then(|icc| ToSrgb::from_icc(icc, Layout::Gray)) {
                // Together with alpha, gray becomes RGB, for which the profile is not.
                Some(profile) if alpha.is_some() => profile.apply(gray)?,
                _ => gray,
            }
        }
        Color::Cmyk => cmyk(pixels, icc, page)?,
        Color::Rgb | Color::Palette => rgb(pixels.colors(), page)?,
        Color::YCbCr => {
            let mut samples = pixels.colors();
            // JPEG has converted it already.
            if page.compression != Compression::Jpeg {
                blocks::to_rgb(&mut samples, &page.directory);
            }
            rgb(samples, page)?
        }
        Color::CieLab | Color::IccLab => {
            let mut samples = pixels.colors();
            lab::to_srgb(&mut samples, page.color == Color::CieLab);
            rgb(samples, page)?
        }
    };
    let image = match alpha {
        Some(alpha) => with_alpha(image, &alpha)?,
        None => image,
    };
    let image = normalize(image);
    if !matches!(page.color, Color::Cmyk | Color::CieLab | Color::IccLab) {
        color = icc.and_then(|icc| ToSrgb::from_icc(icc, icc_layout(&image)));
    }
    Ok(Picture::full(image, color))
}

/// Color channels, plus one for alpha. A palette is looked up while they are filled.
fn channels(page: &Page<'_>) -> usize {
    let colors = if page.color == Color::Palette { 3 } else { page.color.samples() };
    colors + usize::from(page.alpha.is_some())
}

impl PagePixels {
    fn decode(page: &Page<'_>) -> Result<Self, Failure> {
        let (width, height) = (page.width as usize, page.height as usize);
        let channels = channels(page);
        let samples = vec![0; width * height * channels];
        let mut pixels = Self { samples, width, height, channels };
        let palette = if page.color == Color::Palette { palette(page)? } else { Vec::new() };
        let mut jpeg = match page.compression {
            Compression::Jpeg => Some(JpegChunks::new(page)?),
            _ => None,
        };
        let planes = if page.is_planar { page.samples } else { 1 };
        let (across, down) = (page.chunks.across, page.chunks.down);
        let mut rows = Vec::new();
        for plane in 0..planes {
            if page.is_planar && !is_shown(page, plane) {
                continue;
            }
            for index in 0..u64::from(across) * u64::from(down) {
                let at = plane as u64 * u64::from(across) * u64::from(down) + index;
                let stored = page.chunks.bytes(&page.directory, at).ok_or_else(damaged)?;
                let top =
                    u32::try_from(index / u64::from(across)).map_err(bug)? * page.chunks.height;
                let left =
                    u32::try_from(index % u64::from(across)).map_err(bug)? * page.chunks.width;
                unpack_chunk(page, stored, top, jpeg.as_mut(), &mut rows)?;
                let place = [left as usize, top as usize];
                pixels.put(page, &rows, place, plane, &palette);
            }
        }
        Ok(pixels)
    }

    /// Copies the part of a chunk that is within the page.
    fn put(
        &mut self,
        page: &Page<'_>,
        rows: &[u8],
        [left, top]: [usize; 2],
        plane: usize,
        palette: &[[u8; 3]],
    ) {
        let reader = SampleReader::new(page);
        let row_bytes =
            if page.has_blocks() { 3 * page.chunks.width as usize } else { bytes_of_row(page) };
        let width = (page.chunks.width as usize).min(self.width - left);
        let stride = page.chunk_samples();
        let is_plain = stride == self.channels
            && page.bits == 8
            && page.kind == SampleKind::Unsigned
            && palette.is_empty();
        let is_deep_lab = page.bits == 16 && matches!(page.color, Color::CieLab | Color::IccLab);
        let rows = rows.chunks_exact(row_bytes).take(self.height - top);
        for (row, y) in rows.zip(top..) {
            let start = (y * self.width + left) * self.channels;
            let to = &mut self.samples[start..start + width * self.channels];
            if is_plain {
                to.copy_from_slice(&row[..to.len()]);
                continue;
            }
            let sources = sources(page, plane, self.channels);
            for (x, pixel) in to.chunks_exact_mut(self.channels).enumerate() {
                for (channel, sample) in &sources {
                    let index = x * stride + sample;
                    if *channel == 0 && !palette.is_empty() {
                        let entry = usize::try_from(reader.raw(row, index)).unwrap_or(usize::MAX);
                        let color = palette.get(entry).copied().unwrap_or_default();
                        pixel[..3].copy_from_slice(&color);
                    } else if is_deep_lab && *channel < 3 {
                        pixel[*channel] = lab::level(reader.raw(row, index), page.color, *channel);
                    } else {
                        pixel[*channel] = reader.level(row, index);
                    }
                }
            }
        }
    }

    /// Undoes the multiplication of the colors by alpha.
    fn divide_by_alpha(&mut self) {
        for pixel in self.samples.chunks_exact_mut(self.channels) {
            let Some((alpha, colors)) = pixel.split_last_mut() else { continue };
            let alpha = u32::from(*alpha);
            for level in colors {
                let divided = (u32::from(*level) * 255 + alpha / 2).checked_div(alpha);
                *level = u8::try_from(divided.unwrap_or(0)).unwrap_or(u8::MAX);
            }
        }
    }

    fn split_alpha(&self) -> Vec<u8> {
        self.samples.chunks_exact(self.channels).map(|pixel| pixel[self.channels - 1]).collect()
    }

    /// The samples without alpha; three or four color channels.
    fn colors(self) -> Vec<u8> {
        match self.channels {
            // RGB and alpha; CMYK is not split here.
            4 => self
                .samples
                .as_chunks::<4>()
                .0
                .iter()
                .flat_map(|[a, b, c, _]| [*a, *b, *c])
                .collect(),
            _ => self.samples,
        }
    }
}

/// The channels that a chunk fills, each with the index of its sample in the chunk.
fn sources(page: &Page<'_>, plane: usize, channels: usize) -> Vec<(usize, usize)> {
    let colors = page.color.samples();
    let mut sources: Vec<_> = (0..colors).map(|sample| (sample, sample)).collect();
    sources.extend(page.alpha.map(|alpha| (channels - 1, alpha.sample)));
    if page.is_planar {
        sources.retain(|(_, sample)| *sample == plane);
        for (_, sample) in &mut sources {
            *sample = 0;
        }
    }
    sources
}

fn is_shown(page: &Page<'_>, sample: usize) -> bool {
    sample < page.color.samples() || page.alpha.is_some_and(|alpha| alpha.sample == sample)
}

fn bytes_of_row(page: &Page<'_>) -> usize {
    usize::try_from(page.row_bytes()).unwrap_or(usize::MAX)
}

/// Fills `rows` with the rows of a chunk: all rows of a tile, those of a strip that are within the page.
fn unpack_chunk(
    page: &Page<'_>,
    stored: &[u8],
    top: u32,
    jpeg: Option<&mut JpegChunks>,
    rows: &mut Vec<u8>,
) -> Result<(), Failure> {
    let chunk = page.chunks;
    let height = if chunk.is_tiled { chunk.height } else { chunk.height.min(page.height - top) };
    let stored_rows = height.div_ceil(page.rows_together()) as usize;
    let row_bytes = bytes_of_row(page);
    rows.clear();
    rows.resize(stored_rows.checked_mul(row_bytes).ok_or_else(damaged)?, 0);
    if let Some(jpeg) = jpeg {
        return jpeg.decode(stored, [chunk.width, chunk.height], rows);
    }
    compression::unpack(page.compression, page.low_bit_first, chunk.width, stored, rows)?;
    for row in rows.chunks_exact_mut(row_bytes) {
        unpredict(page, row);
    }
    if page.has_blocks() {
        *rows = blocks::expand(rows, chunk.width as usize, height as usize, page.subsampling);
    }
    Ok(())
}

/// The colors of a palette: all reds, then all greens, then all blues, in 16 bits.
fn palette(page: &Page<'_>) -> Result<Vec<[u8; 3]>, Failure> {
    let field = page.directory.field(tag::COLOR_MAP).ok_or_else(damaged)?;
    let count = field.count() / 3;
    if count == 0 || count < 1 << page.bits.min(8) {
        return Err(damaged());
    }
    let value = |at| field.unsigned(at).unwrap_or(0);
    // Some programs write 8 bits (libtiff's `checkcmap`).
    let is_wide = (0..3 * count).any(|at| value(at) > 255);
    let level = |at| {
        let value = if is_wide { (value(at) * 255 + 32767) / 65535 } else { value(at) };
        u8::try_from(value).unwrap_or(u8::MAX)
    };
    Ok((0..count).map(|at| [0, count, 2 * count].map(|plane| level(plane + at))).collect())
}

fn gray(pixels: PagePixels, is_inverted: bool, page: &Page<'_>) -> Result<DynamicImage, Failure> {
    let mut levels = match pixels.channels {
        2 => pixels.samples.as_chunks::<2>().0.iter().map(|[level, _]| *level).collect(),
        _ => pixels.samples,
    };
    if is_inverted {
        for level in &mut levels {
            *level = u8::MAX - *level;
        }
    }
    let gray = GrayImage::from_raw(page.width, page.height, levels);
    gray.map(DynamicImage::from).ok_or_else(|| bug("a row is missing"))
}

fn rgb(samples: Vec<u8>, page: &Page<'_>) -> Result<DynamicImage, Failure> {
    let rgb = RgbImage::from_raw(page.width, page.height, samples);
    rgb.map(DynamicImage::from).ok_or_else(|| bug("a row is missing"))
}

fn cmyk(pixels: PagePixels, icc: Option<&[u8]>, page: &Page<'_>) -> Result<DynamicImage, Failure> {
    let mut inks = match pixels.channels {
        4 => pixels.samples,
        _ => pixels.samples.chunks_exact(5).flat_map(|pixel| pixel[..4].to_vec()).collect(),
    };
    if let Some(profile) = icc.and_then(|icc| ToSrgb::from_icc(icc, Layout::Rgba)) {
        return Ok(profile.to_rgb(&inks, page.width, page.height)?.into());
    }
    for ink in &mut inks {
        *ink = u8::MAX - *ink;
    }
    Ok(uncalibrated_cmyk(&inks, page.width, page.height).into())
}

/// Adds an alpha channel.
fn with_alpha(image: DynamicImage, alpha: &[u8]) -> Result<DynamicImage, Failure> {
    let rgb = image.into_rgb8();
    let (width, height) = rgb.dimensions();
    let samples = rgb.pixels().zip(alpha).flat_map(|(pixel, &alpha)| {
        let [red, green, blue] = pixel.0;
        [red, green, blue, alpha]
    });
    let rgba = RgbaImage::from_raw(width, height, samples.collect());
    rgba.map(DynamicImage::from).ok_or_else(|| bug("a row is missing"))
}
