//! GIF. The frames are decompressed by `weezl`; the blocks are read here, because the crate `gif` overlooks
//! a loop count after the first frame and rejects frames without a color table.

use image::RgbaImage;
use safelight_domain::Failure;
use weezl::{BitOrder, LzwStatus, decode::Decoder as LzwDecoder};

use crate::{
    canvas::{AnimationCanvas, Disposal, Frame},
    failure::{bug, damaged},
    limits::area,
};

const IMAGE: u8 = 0x2C;
const EXTENSION: u8 = 0x21;
const TRAILER: u8 = 0x3B;
const GRAPHIC_CONTROL: u8 = 0xF9;
const APPLICATION: u8 = 0xFF;

/// The blocks of a GIF (`GIF89a` specification, sections 17 to 27).
pub(super) struct Gif<'a> {
    pub width: u32,
    pub height: u32,
    /// How often it plays; 0 means forever.
    pub plays: u16,
    colors: &'a [u8],
    images: Vec<ImageBlock<'a>>,
}

/// One frame, as it is stored.
struct ImageBlock<'a> {
    left: u16,
    top: u16,
    width: u16,
    height: u16,
    is_interlaced: bool,
    /// Its own color table.
    colors: Option<&'a [u8]>,
    control: Control,
    /// `None` if the file ends before the pixels.
    code_size: Option<u8>,
    /// The sub-blocks of its codes.
    data: &'a [u8],
}

/// What a graphic control extension says about the next frame.
#[derive(Clone, Copy)]
struct Control {
    disposal: Disposal,
    duration_ms: u32,
    transparent: Option<u8>,
}

const NO_CONTROL: Control = Control { disposal: Disposal::Keep, duration_ms: 0, transparent: None };

impl<'a> Gif<'a> {
    /// Reads the blocks up to this number of frames. Extensions that are not known are skipped. What is cut
    /// off after the first frame is noticed when the frames are decoded.
    pub fn read(bytes: &'a [u8], max_frames: u32) -> Result<Self, Failure> {
        let mut reader = Reader { rest: bytes.get(6..).unwrap_or_default() };
        let mut gif = Self { width: 0, height: 0, plays: 1, colors: &[], images: Vec::new() };
        gif.read_screen(&mut reader).ok_or_else(damaged)?;
        let mut control = NO_CONTROL;
        while let Some(kind) = reader.byte() {
            match kind {
                EXTENSION => gif.read_extension(&mut reader, &mut control),
                IMAGE if gif.images.len() as u64 >= u64::from(max_frames) => break,
                IMAGE => {
                    let image = reader.image(control);
                    let image = if gif.images.is_empty() { image?.into() } else { image.ok() };
                    gif.images.push(image.unwrap_or_else(ImageBlock::missing));
                    control = NO_CONTROL;
                }
                // Stray zeros between blocks.
                0 => {}
                TRAILER => break,
                // Browsers ignore what follows the last frame.
                _ if !gif.images.is_empty() => break,
                _ => return Err(damaged()),
            }
        }
        let first = gif.images.first().ok_or_else(damaged)?;
        // As in browsers, the screen grows to the first frame, and later ones are cut off.
        gif.width = gif.width.max(u32::from(first.left) + u32::from(first.width));
        gif.height = gif.height.max(u32::from(first.top) + u32::from(first.height));
        Ok(gif)
    }

    /// The number of frames, at least 1.
    pub fn frames(&self) -> u32 {
        u32::try_from(self.images.len()).unwrap_or(u32::MAX)
    }

    /// The pixels of the largest frame, which may be larger than the screen.
    pub fn largest_frame(&self) -> u64 {
        self.images
            .iter()
            .map(|image| area(image.width.into(), image.height.into()))
            .max()
            .unwrap_or(0)
    }

    /// The pixels of all frames as they are stored, including what is not on the screen.
    pub fn frame_pixels(&self) -> u64 {
        self.images.iter().map(|image| area(image.width.into(), image.height.into())).sum()
    }

    fn read_screen(&mut self, reader: &mut Reader<'a>) -> Option<()> {
        self.width = reader.u16()?.into();
        self.height = reader.u16()?.into();
        let flags = reader.byte()?;
        // The background color, which browsers ignore, and the aspect ratio.
        reader.take(2)?;
        self.colors = reader.colors(flags)?;
        Some(())
    }

    fn read_extension(&mut self, reader: &mut Reader<'a>, control: &mut Control) {
        let label = reader.byte();
        let mut blocks = SubBlocks(reader.sub_blocks());
        match (label, [blocks.next(), blocks.next()]) {
            (Some(GRAPHIC_CONTROL), [Some([flags, low, high, transparent, ..]), _]) => {
                *control = Control {
                    disposal: match flags >> 2 & 7 {
                        2 => Disposal::Clear,
                        3 => Disposal::Restore,
                        _ => Disposal::Keep,
                    },
                    duration_ms: u32::from(u16::from_le_bytes([*low, *high])) * 10,
                    transparent: (flags & 1 == 1).then_some(*transparent),
                };
            }
            (
                Some(APPLICATION),
                [Some(b"NETSCAPE2.0" | b"ANIMEXTS1.0"), Some([1, low, high, ..])],
            ) => {
                self.plays = match u16::from_le_bytes([*low, *high]) {
                    0 => 0,
                    // The block counts repetitions, not plays.
                    times => times.saturating_add(1),
                };
            }
            _ => {}
        }
    }

    /// The canvas after each frame, and how long it is shown, in ms.
    pub fn canvases(self) -> impl Iterator<Item = Result<(RgbaImage, u32), Failure>> + 'a {
        let mut canvas = AnimationCanvas::new(self.width, self.height);
        let colors = self.colors;
        self.images
            .into_iter()
            .map(move |image| Ok((canvas.draw(&image.decode(colors)?), image.control.duration_ms)))
    }
}

impl ImageBlock<'_> {
    /// A frame of which not even the position is there.
    fn missing() -> Self {
        Self {
            left: 0,
            top: 0,
            width: 1,
            height: 1,
            is_interlaced: false,
            colors: None,
            control: NO_CONTROL,
            code_size: None,
            data: &[],
        }
    }

    fn decode(&self, global_colors: &[u8]) -> Result<Frame, Failure> {
        let (width, height) = (usize::from(self.width), usize::from(self.height));
        let mut indices = vec![0; width * height];
        self.decompress(&mut indices)?;
        let palette = self.palette(global_colors);
        let mut pixels = vec![0; indices.len() * 4];
        if width > 0 {
            for (row, y) in indices.chunks_exact(width).zip(rows(height, self.is_interlaced)) {
                let to = &mut pixels[y * width * 4..][..width * 4];
                for (pixel, index) in to.as_chunks_mut::<4>().0.iter_mut().zip(row) {
                    *pixel = palette[usize::from(*index)];
                }
            }
        }
        let pixels = RgbaImage::from_raw(self.width.into(), self.height.into(), pixels);
        Ok(Frame {
            left: self.left.into(),
            top: self.top.into(),
            pixels: pixels.ok_or_else(|| bug("a row is missing"))?,
            blends: true,
            disposal: self.control.disposal,
        })
    }

    /// Fills the color indices. A frame with too few is damaged.
    fn decompress(&self, indices: &mut [u8]) -> Result<(), Failure> {
        // A frame without pixels needs no codes.
        if indices.is_empty() {
            return Ok(());
        }
        // Larger codes than the specification's 8 bits do not occur in files that browsers show.
        let size = self.code_size.filter(|size| (1..=11).contains(size)).ok_or_else(damaged)?;
        let mut decoder = LzwDecoder::new(BitOrder::Lsb, size);
        let mut written = 0;
        for mut block in SubBlocks(self.data) {
            while !block.is_empty() && written < indices.len() {
                let result = decoder.decode_bytes(block, &mut indices[written..]);
                written += result.consumed_out;
                block = &block[result.consumed_in..];
                match result.status {
                    Ok(LzwStatus::Ok) => {}
                    Ok(LzwStatus::Done | LzwStatus::NoProgress) => block = &[],
                    Err(_) => return Err(damaged()),
                }
            }
        }
        // Codes may be left in the decoder after the last byte.
        while written < indices.len() {
            let result = decoder.decode_bytes(&[], &mut indices[written..]);
            if result.consumed_out == 0 {
                return Err(damaged());
            }
            written += result.consumed_out;
        }
        Ok(())
    }

    /// The colors of all indices. What is not in the table is black, as in browsers.
    fn palette(&self, global_colors: &[u8]) -> [[u8; 4]; 256] {
        let mut palette = [[0, 0, 0, 255]; 256];
        let colors = self.colors.unwrap_or(global_colors);
        for (entry, [red, green, blue]) in palette.iter_mut().zip(colors.as_chunks::<3>().0) {
            *entry = [*red, *green, *blue, 255];
        }
        if colors.is_empty() {
            // Without any table, the first colors are black and white (GIF89a, section 18); the others are
            // the grays that Pillow shows.
            for (entry, gray) in palette.iter_mut().zip(0..=u8::MAX) {
                *entry = [gray, gray, gray, 255];
            }
            palette[1] = [255; 4];
        }
        if let Some(transparent) = self.control.transparent {
            palette[usize::from(transparent)] = [0; 4];
        }
        palette
    }
}

/// The order of the rows (`GIF89a`, appendix E).
fn rows(height: usize, is_interlaced: bool) -> Box<dyn Iterator<Item = usize>> {
    if !is_interlaced {
        return Box::new(0..height);
    }
    let passes = [(0, 8), (4, 8), (2, 4), (1, 2)];
    Box::new(passes.into_iter().flat_map(move |(start, step)| (start..height).step_by(step)))
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// A color table, if the flags announce one; empty otherwise.
    fn colors(&mut self, flags: u8) -> Option<&'a [u8]> {
        let count = if flags & 0x80 == 0 { 0 } else { 2 << (flags & 7) };
        self.take(3 * count)
    }

    /// Data blocks up to the empty one, or to the end of the file, with their lengths.
    fn sub_blocks(&mut self) -> &'a [u8] {
        let start = self.rest;
        let mut blocks = SubBlocks(start);
        while blocks.next().is_some() {}
        self.rest = blocks.0;
        &start[..start.len() - self.rest.len()]
    }

    fn image(&mut self, control: Control) -> Result<ImageBlock<'a>, Failure> {
        let mut side = || self.u16().ok_or_else(damaged);
        let (left, top, width, height) = (side()?, side()?, side()?, side()?);
        let flags = self.byte().ok_or_else(damaged)?;
        let colors = self.colors(flags).ok_or_else(damaged)?;
        let code_size = self.byte();
        let data = self.sub_blocks();
        let colors = (!colors.is_empty()).then_some(colors);
        let is_interlaced = flags & 0x40 != 0;
        Ok(ImageBlock { left, top, width, height, is_interlaced, colors, control, code_size, data })
    }
}

/// Iterates over data blocks up to the empty one. The last one may be cut short.
struct SubBlocks<'a>(&'a [u8]);

impl<'a> Iterator for SubBlocks<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<Self::Item> {
        let (&length, rest) = self.0.split_first()?;
        let (block, rest) = rest.split_at(usize::from(length).min(rest.len()));
        self.0 = rest;
        (length > 0).then_some(block)
    }
}
