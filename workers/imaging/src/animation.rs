//! Animated GIF and WebP in, animated WebP out; one frame in memory at a time.
//!
//! libwebp's own animation encoder, as far as Rust's bindings reach it, wants all frames at once. So
//! each frame is encoded as a picture of its own and put into the container here: RFC 9649, section
//! 2.7.1 (`ANIM` and `ANMF` chunks).

use std::io::Cursor;

use bytes::{BufMut, Bytes, BytesMut};
use image::{
    AnimationDecoder, DynamicImage, RgbImage, RgbaImage, codecs::gif::GifDecoder,
    metadata::Orientation,
};
use image_webp::{LoopCount, WebPDecoder};
use img_parts::{
    riff::{RiffChunk, RiffContent},
    webp::{CHUNK_ALPH, CHUNK_ANIM, CHUNK_ANMF, CHUNK_VP8, CHUNK_VP8L, CHUNK_VP8X, WebP},
};
use moxcms::Layout;
use safelight_domain::{ErrorCode, Failure, ImageFormat, Preset, Size};

use super::{
    bug, colour::ToSrgb, encode, geometry::Frame, header::damaged, picture::Pixels,
    planes::Sampling, raster, resize::Resizer, turn::turned_size, webp,
};

/// Browsers show frames that say less than this for 100 ms, in ms; so do we.
const SHORTEST: u32 = 11;

/// What a frame that says too little lasts, in ms.
const USUAL: u32 = 100;

/// The longest that a frame of a WebP can last, in ms.
const LONGEST: u32 = (1 << 24) - 1;

/// One frame: the whole canvas as it is seen.
pub(super) struct Shown {
    pub canvas: RgbaImage,
    /// How long it is shown, in ms.
    pub duration: u32,
}

/// An animation, frame by frame.
pub(super) struct Animation<'a> {
    /// How often it plays; 0 for ever.
    pub plays: u16,
    /// What makes the colours sRGB, unless they are.
    pub colour: Option<ToSrgb>,
    pub frames: Box<dyn Iterator<Item = Result<Shown, Failure>> + 'a>,
}

/// The number of frames of a GIF, found without decoding them; counting ends behind `most`.
pub(super) fn gif_frames(bytes: &[u8], most: u32) -> Result<u32, Failure> {
    let mut options = gif::DecodeOptions::new();
    options.skip_frame_decoding(true);
    let mut decoder = options.read_info(bytes).map_err(|_| damaged())?;
    let mut frames = 0;
    // What is damaged behind the first frame shows when it is decoded.
    while frames <= most && matches!(decoder.next_frame_info(), Ok(Some(_))) {
        frames += 1;
    }
    if frames == 0 { Err(damaged()) } else { Ok(frames) }
}

impl<'a> Animation<'a> {
    /// Opens a GIF or WebP of so many frames.
    pub fn open(bytes: &'a [u8], format: ImageFormat, frames: u32) -> Result<Self, Failure> {
        match format {
            ImageFormat::Gif => Self::gif(bytes, frames),
            ImageFormat::Webp => Self::webp(bytes),
            _ => Err(bug("no format with animations")),
        }
    }

    fn gif(bytes: &'a [u8], count: u32) -> Result<Self, Failure> {
        let plays = gif_plays(bytes);
        let decoder = GifDecoder::new(Cursor::new(bytes)).map_err(raster::failure)?;
        // No further than the last frame: many a GIF lacks its end marker.
        let frames = decoder.into_frames().take(count as usize).map(|frame| {
            let frame = frame.map_err(raster::failure)?;
            let (numerator, denominator) = frame.delay().numer_denom_ms();
            let duration = numerator / denominator.max(1);
            Ok(Shown { canvas: frame.into_buffer(), duration })
        });
        Ok(Self { plays, colour: None, frames: Box::new(frames) })
    }

    fn webp(bytes: &'a [u8]) -> Result<Self, Failure> {
        webp::check_frames(bytes)?;
        let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(webp::failure)?;
        // Without a colour to clear it with, the canvas is never cleared, and old frames show through.
        decoder.set_background_color([0; 4]).map_err(webp::failure)?;
        let plays = match decoder.loop_count() {
            LoopCount::Forever => 0,
            LoopCount::Times(times) => times.get(),
        };
        let icc = decoder.icc_profile().ok().flatten();
        let colour = icc.and_then(|icc| ToSrgb::from_icc(&icc, Layout::Rgba));
        let (width, height) = decoder.dimensions();
        let mut left = decoder.num_frames();
        let has_alpha = decoder.has_alpha();
        let size = decoder.output_buffer_size().ok_or_else(damaged)?;
        let frames = std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let mut pixels = vec![0; size];
            let frame = decoder.read_frame(&mut pixels).map_err(webp::failure);
            Some(frame.and_then(|duration| {
                let canvas = if has_alpha {
                    RgbaImage::from_raw(width, height, pixels)
                } else {
                    RgbImage::from_raw(width, height, pixels)
                        .map(|rgb| DynamicImage::from(rgb).into_rgba8())
                };
                let canvas = canvas.ok_or_else(|| bug("a frame of another size"))?;
                Ok(Shown { canvas, duration })
            }))
        });
        Ok(Self { plays, colour, frames: Box::new(frames) })
    }
}

/// How often a GIF plays: as its application block says, and 0 for ever.
fn gif_plays(bytes: &[u8]) -> u16 {
    let mut options = gif::DecodeOptions::new();
    options.skip_frame_decoding(true);
    let Ok(mut decoder) = options.read_info(bytes) else { return 1 };
    // The block stands before the first frame.
    let _ = decoder.next_frame_info();
    match decoder.repeat() {
        gif::Repeat::Infinite => 0,
        // One time more than it is repeated.
        gif::Repeat::Finite(times) => times.saturating_add(1),
    }
}

/// An animated WebP that grows frame by frame.
pub(super) struct Writer {
    frame: Frame,
    quality: u8,
    sharpen: u8,
    turn: Orientation,
    plays: u16,
    last: Option<(RgbaImage, Bytes, u32)>,
    chunks: Vec<RiffChunk>,
    has_alpha: bool,
}

impl Writer {
    /// Shows the same part of every canvas.
    pub fn new(frame: Frame, preset: &Preset, turn: Orientation, plays: u16) -> Self {
        Self {
            frame,
            quality: preset.quality,
            sharpen: preset.sharpen,
            turn,
            plays,
            last: None,
            chunks: Vec::new(),
            has_alpha: false,
        }
    }

    /// Adds a frame. One that looks like the last prolongs it.
    pub fn add(
        &mut self,
        canvas: &Pixels,
        duration: u32,
        colour: Option<&ToSrgb>,
        resizer: &mut Resizer,
    ) -> Result<(), Failure> {
        let duration = if duration < SHORTEST { USUAL } else { duration.min(LONGEST) };
        let Frame { region, size } = self.frame;
        let mut small = canvas.resized(resizer, region, size, Sampling::FULL)?;
        if self.turn != Orientation::NoTransforms {
            small = small.turned(self.turn, resizer)?;
        }
        small.sharpen(self.sharpen);
        let mut small = small.into_image(resizer)?;
        if let Some(colour) = colour {
            small = colour.apply(small)?;
        }
        let small = small.into_rgba8();
        if let Some((last, _, lasting)) = &mut self.last
            && last.as_raw() == small.as_raw()
            && *lasting + duration <= LONGEST
        {
            *lasting += duration;
            return Ok(());
        }
        self.flush();
        let still = encode::webp(&raster::plain(small.clone().into()), self.quality)?;
        let still = WebP::from_bytes(still.into()).map_err(bug)?;
        let mut picture = BytesMut::new();
        for chunk in still.chunks() {
            if [CHUNK_ALPH, CHUNK_VP8, CHUNK_VP8L].contains(&chunk.id()) {
                self.has_alpha |= chunk.id() != CHUNK_VP8;
                picture.put(chunk.clone().encoder().bytes());
            }
        }
        self.last = Some((small, picture.freeze(), duration));
        Ok(())
    }

    /// Upright, in pixels.
    pub fn size(&self) -> Size {
        turned_size(self.frame.size, self.turn)
    }

    fn flush(&mut self) {
        let Size { width, height } = self.size();
        let Some((_, picture, duration)) = self.last.take() else { return };
        let mut frame = BytesMut::new();
        // Where it stands on the canvas, in pairs of pixels.
        frame.put_uint_le(0, 3);
        frame.put_uint_le(0, 3);
        frame.put_uint_le(u64::from(width - 1), 3);
        frame.put_uint_le(u64::from(height - 1), 3);
        frame.put_uint_le(duration.into(), 3);
        // Replaces what was there (no blending), and stays.
        frame.put_u8(0b10);
        frame.put(picture);
        self.chunks.push(RiffChunk::new(CHUNK_ANMF, RiffContent::Data(frame.freeze())));
    }

    /// The whole file.
    pub fn finish(mut self) -> Result<Vec<u8>, Failure> {
        self.flush();
        if self.chunks.is_empty() {
            return Err(Failure::new(ErrorCode::CorruptImage, "the animation has no frames"));
        }
        let Size { width, height } = self.size();
        let mut extended = BytesMut::new();
        let (animated, alpha) = (0b10, if self.has_alpha { 0b1_0000 } else { 0 });
        extended.put_u32_le(animated | alpha);
        extended.put_uint_le(u64::from(width - 1), 3);
        extended.put_uint_le(u64::from(height - 1), 3);
        let mut animation = BytesMut::new();
        // A transparent background.
        animation.put_u32_le(0);
        animation.put_u16_le(self.plays);
        let head = [(CHUNK_VP8X, extended), (CHUNK_ANIM, animation)]
            .map(|(id, data)| RiffChunk::new(id, RiffContent::Data(data.freeze())));
        let subchunks = head.into_iter().chain(self.chunks).collect();
        let content = RiffContent::List { kind: Some(*b"WEBP"), subchunks };
        Ok(RiffChunk::new(*b"RIFF", content).encoder().bytes().to_vec())
    }
}
