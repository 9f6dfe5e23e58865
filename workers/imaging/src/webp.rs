//! WebP. libwebp decodes the pictures; the container of an animation is read here (RFC 9649, section 2.7), as
//! leniently as libwebp reads that of a still picture: flags without their chunk and unknown chunks do no
//! harm.

use image::{DynamicImage, RgbImage, RgbaImage};
use safelight_domain::{ErrorCode, Failure};

use crate::{
    canvas::{AnimationCanvas, Disposal, Frame},
    color::ToSrgb,
    failure::{bug, damaged},
    picture::Picture,
    pixel_layout::{icc_layout, normalize},
};

const ANIMATION_FLAG: u8 = 0b10;

/// The length of the fields before a frame's own chunks, in bytes.
const FRAME_HEADER: usize = 16;

/// Width and height, and the number of frames: 1 unless the picture is animated. Stops after `max_frames` + 1.
pub(super) fn header(bytes: &[u8], max_frames: u32) -> Result<((u32, u32), u32), Failure> {
    if is_animated(bytes) {
        let animation = Animated::open(bytes).ok_or_else(damaged)?;
        let frames = animation.frames().take(max_frames as usize + 1).count();
        let frames = u32::try_from(frames).unwrap_or(u32::MAX);
        return Ok(((animation.width, animation.height), frames.max(1)));
    }
    let features = webp::BitstreamFeatures::new(bytes).ok_or_else(damaged)?;
    Ok(((features.width(), features.height()), 1))
}

/// Whether the container says that it holds frames. An animation may have a single one.
pub(super) fn is_animated(bytes: &[u8]) -> bool {
    let first = chunks(bytes).next();
    matches!(first, Some((b"VP8X", [flags, ..])) if flags & ANIMATION_FLAG != 0)
}

/// The content of the first chunk of this kind.
pub(super) fn chunk(bytes: &[u8], wanted: [u8; 4]) -> Option<&[u8]> {
    chunks(bytes).find(|(kind, _)| **kind == wanted).map(|(_, content)| content)
}

/// Decodes a picture that is not animated.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, Failure> {
    let image = normalize(picture(bytes)?);
    let icc = chunk(bytes, *b"ICCP");
    let color = icc.and_then(|icc| ToSrgb::from_icc(icc, icc_layout(&image)));
    Ok(Picture::full(image, color))
}

fn picture(bytes: &[u8]) -> Result<DynamicImage, Failure> {
    let decoded = webp::Decoder::new(bytes).decode().ok_or_else(damaged)?;
    let (width, height, samples) = (decoded.width(), decoded.height(), decoded.to_vec());
    let image = if decoded.is_alpha() {
        RgbaImage::from_raw(width, height, samples).map(DynamicImage::from)
    } else {
        RgbImage::from_raw(width, height, samples).map(DynamicImage::from)
    };
    image.ok_or_else(|| bug("libwebp returned too few pixels"))
}

/// An animation, as it is stored.
pub(super) struct Animated<'a> {
    bytes: &'a [u8],
    width: u32,
    height: u32,
    /// How often it plays; 0 means forever.
    pub plays: u16,
}

impl<'a> Animated<'a> {
    /// `None` if it has no size.
    pub fn open(bytes: &'a [u8]) -> Option<Self> {
        let Some((b"VP8X", [_, _, _, _, size @ ..])) = chunks(bytes).next() else { return None };
        let (width, height) = size.split_at_checked(3)?;
        let plays = match chunk(bytes, *b"ANIM") {
            Some([_, _, _, _, low, high, ..]) => u16::from_le_bytes([*low, *high]),
            _ => 0,
        };
        let (width, height) = (u24(width) + 1, u24(height.get(..3)?) + 1);
        Some(Self { bytes, width, height, plays })
    }

    fn frames(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        chunks(self.bytes).filter(|(kind, _)| *kind == b"ANMF").map(|(_, content)| content)
    }

    /// The canvas after each frame, and how long it is shown, in ms.
    pub fn canvases(self) -> impl Iterator<Item = Result<(RgbaImage, u32), Failure>> + 'a {
        let mut canvas = AnimationCanvas::new(self.width, self.height);
        let is_whole = announced_length(self.bytes) <= self.bytes.len();
        self.frames().map(move |content| {
            if !is_whole {
                return Err(damaged());
            }
            let (frame, duration_ms) = frame(content, (self.width, self.height))?;
            Ok((canvas.draw(&frame), duration_ms))
        })
    }
}

/// Decodes a frame: position, size, duration and flags; then chunks, of which one or two are the picture. One that
/// extends beyond the canvas is not decoded: the limits were checked for the canvas alone.
fn frame(content: &[u8], canvas: (u32, u32)) -> Result<(Frame, u32), Failure> {
    let (header, parts) = content.split_at_checked(FRAME_HEADER).ok_or_else(damaged)?;
    let (left, top) = (u24(&header[0..3]) * 2, u24(&header[3..6]) * 2);
    let announced = (u24(&header[6..9]) + 1, u24(&header[9..12]) + 1);
    let is_inside = left + announced.0 <= canvas.0 && top + announced.1 <= canvas.1;
    if !is_inside {
        let message = "a frame extends beyond the canvas of its animation";
        return Err(Failure::new(ErrorCode::CorruptImage, message));
    }
    // libwebp takes the chunks without their container, but no unknown ones between them.
    let mut coded = Vec::with_capacity(parts.len());
    for (kind, part) in RiffChunks(parts) {
        let is_picture = matches!(kind, b"VP8 " | b"VP8L");
        if is_picture || kind == b"ALPH" {
            coded.extend_from_slice(kind);
            coded.extend_from_slice(&u32::try_from(part.len()).map_err(bug)?.to_le_bytes());
            coded.extend_from_slice(part);
            coded.resize(coded.len().next_multiple_of(2), 0);
        }
        if is_picture {
            break;
        }
    }
    let features = webp::BitstreamFeatures::new(&coded).ok_or_else(damaged)?;
    if (features.width(), features.height()) != announced {
        return Err(damaged());
    }
    let flags = header[15];
    let frame = Frame {
        left,
        top,
        pixels: picture(&coded)?.into_rgba8(),
        blends: flags & 0b10 == 0,
        disposal: if flags & 0b01 == 0 { Disposal::Keep } else { Disposal::Clear },
    };
    Ok((frame, u24(&header[12..15])))
}

fn u24(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// The length of the file that its header announces, in bytes.
fn announced_length(bytes: &[u8]) -> usize {
    let length = bytes.get(4..8).and_then(|length| length.try_into().ok()).map(u32::from_le_bytes);
    8 + length.unwrap_or(u32::MAX) as usize
}

/// The chunks of a file; what follows the announced length is none.
fn chunks(bytes: &[u8]) -> RiffChunks<'_> {
    let end = announced_length(bytes).min(bytes.len());
    RiffChunks(bytes.get(12..end).unwrap_or_default())
}

/// Iterates over the chunks of a RIFF file or of one of its chunks. The last one may be cut short.
struct RiffChunks<'a>(&'a [u8]);

impl<'a> Iterator for RiffChunks<'a> {
    type Item = (&'a [u8; 4], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (kind, rest) = self.0.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let content = &rest[..length.min(rest.len())];
        // RiffChunks are padded to an even length.
        self.0 = rest.get(length.next_multiple_of(2)..).unwrap_or_default();
        Some((kind, content))
    }
}
