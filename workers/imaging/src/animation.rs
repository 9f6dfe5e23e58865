//! Decodes animated GIF and WebP and encodes animated WebP, with one frame in memory at a time.
//!
//! The Rust bindings of libwebp's animation encoder need all frames at once. So each frame is encoded as
//! a still picture and put into the container here: RFC 9649, section 2.7.1 (`ANIM` and `ANMF` chunks).

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

use crate::{
    color::ToSrgb,
    encode,
    failure::{bug, damaged},
    geometry::Viewport,
    orientation::oriented_size,
    picture::Pixels,
    pixel_layout,
    planes::Sampling,
    raster,
    resize::Resizer,
    webp,
};

/// Browsers show a frame with a duration below this, in ms, for [`DEFAULT_FRAME_MS`].
const MIN_FRAME_MS: u32 = 11;

const DEFAULT_FRAME_MS: u32 = 100;

/// The longest possible duration of a frame in a WebP, in ms.
const MAX_FRAME_MS: u32 = (1 << 24) - 1;

/// The whole canvas while one frame is shown.
pub(super) struct AnimationFrame {
    pub canvas: RgbaImage,
    pub duration_ms: u32,
}

/// An animation that is decoded frame by frame.
pub(super) struct Animation<'a> {
    /// How often it plays; 0 means forever.
    pub plays: u16,
    /// Converts the colors to sRGB; `None` if they already are.
    pub color: Option<ToSrgb>,
    pub frames: Box<dyn Iterator<Item = Result<AnimationFrame, Failure>> + 'a>,
}

/// Counts the frames of a GIF without decoding them. Stops after `limit` + 1.
pub(super) fn gif_frames(bytes: &[u8], limit: u32) -> Result<u32, Failure> {
    let mut options = gif::DecodeOptions::new();
    options.skip_frame_decoding(true);
    let mut decoder = options.read_info(bytes).map_err(|_| damaged())?;
    let mut frames = 0;
    // Damage after the first frame is reported when the frames are decoded.
    while frames <= limit && matches!(decoder.next_frame_info(), Ok(Some(_))) {
        frames += 1;
    }
    if frames == 0 { Err(damaged()) } else { Ok(frames) }
}

impl<'a> Animation<'a> {
    /// Opens a GIF or WebP with this number of frames.
    pub fn open(bytes: &'a [u8], format: ImageFormat, frames: u32) -> Result<Self, Failure> {
        match format {
            ImageFormat::Gif => Self::gif(bytes, frames),
            ImageFormat::Webp => Self::webp(bytes),
            _ => Err(bug("the format has no animations")),
        }
    }

    fn gif(bytes: &'a [u8], count: u32) -> Result<Self, Failure> {
        let plays = gif_plays(bytes);
        let decoder = GifDecoder::new(Cursor::new(bytes)).map_err(raster::decode_failure)?;
        // Stops at the last frame, because many GIFs lack their end marker.
        let frames = decoder.into_frames().take(count as usize).map(|frame| {
            let frame = frame.map_err(raster::decode_failure)?;
            let (numerator, denominator) = frame.delay().numer_denom_ms();
            let duration_ms = numerator / denominator.max(1);
            Ok(AnimationFrame { canvas: frame.into_buffer(), duration_ms })
        });
        Ok(Self { plays, color: None, frames: Box::new(frames) })
    }

    fn webp(bytes: &'a [u8]) -> Result<Self, Failure> {
        webp::check_frames(bytes)?;
        let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(webp::decode_failure)?;
        // Without a background color the decoder never clears the canvas, and old frames show through.
        decoder.set_background_color([0; 4]).map_err(webp::decode_failure)?;
        let plays = match decoder.loop_count() {
            LoopCount::Forever => 0,
            LoopCount::Times(times) => times.get(),
        };
        let icc = decoder.icc_profile().ok().flatten();
        let color = icc.and_then(|icc| ToSrgb::from_icc(&icc, Layout::Rgba));
        let (width, height) = decoder.dimensions();
        let mut left = decoder.num_frames();
        let has_alpha = decoder.has_alpha();
        let size = decoder.output_buffer_size().ok_or_else(damaged)?;
        let frames = std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let mut pixels = vec![0; size];
            let frame = decoder.read_frame(&mut pixels).map_err(webp::decode_failure);
            Some(frame.and_then(|duration_ms| {
                let canvas = if has_alpha {
                    RgbaImage::from_raw(width, height, pixels)
                } else {
                    RgbImage::from_raw(width, height, pixels)
                        .map(|rgb| DynamicImage::from(rgb).into_rgba8())
                };
                let canvas = canvas.ok_or_else(|| bug("a frame of another size"))?;
                Ok(AnimationFrame { canvas, duration_ms })
            }))
        });
        Ok(Self { plays, color, frames: Box::new(frames) })
    }
}

/// How often a GIF plays, from its application block; 0 means forever.
fn gif_plays(bytes: &[u8]) -> u16 {
    let mut options = gif::DecodeOptions::new();
    options.skip_frame_decoding(true);
    let Ok(mut decoder) = options.read_info(bytes) else { return 1 };
    // The block precedes the first frame.
    let _ = decoder.next_frame_info();
    match decoder.repeat() {
        gif::Repeat::Infinite => 0,
        // The block counts repetitions, not plays.
        gif::Repeat::Finite(times) => times.saturating_add(1),
    }
}

/// Writes an animated WebP frame by frame.
pub(super) struct WebpWriter {
    viewport: Viewport,
    quality: u8,
    sharpen: u8,
    orientation: Orientation,
    plays: u16,
    /// The frame not written yet: its pixels, its chunks and its duration in ms.
    last: Option<(RgbaImage, Bytes, u32)>,
    chunks: Vec<RiffChunk>,
    has_alpha: bool,
}

impl WebpWriter {
    /// Applies the same viewport to every frame.
    pub fn new(viewport: Viewport, preset: &Preset, orientation: Orientation, plays: u16) -> Self {
        Self {
            viewport,
            quality: preset.quality,
            sharpen: preset.sharpen,
            orientation,
            plays,
            last: None,
            chunks: Vec::new(),
            has_alpha: false,
        }
    }

    /// Adds a frame. A frame equal to the last one extends its duration.
    pub fn add(
        &mut self,
        canvas: &Pixels,
        duration_ms: u32,
        color: Option<&ToSrgb>,
        resizer: &mut Resizer,
    ) -> Result<(), Failure> {
        let duration_ms = if duration_ms < MIN_FRAME_MS {
            DEFAULT_FRAME_MS
        } else {
            duration_ms.min(MAX_FRAME_MS)
        };
        let Viewport { region, size } = self.viewport;
        let mut small = canvas.resized(resizer, region, size, Sampling::FULL)?;
        if self.orientation != Orientation::NoTransforms {
            small = small.oriented(self.orientation, resizer)?;
        }
        small.sharpen(self.sharpen);
        let mut small = small.into_image(resizer)?;
        if let Some(color) = color {
            small = color.apply(small)?;
        }
        let small = small.into_rgba8();
        if let Some((last, _, last_ms)) = &mut self.last
            && last.as_raw() == small.as_raw()
            && *last_ms + duration_ms <= MAX_FRAME_MS
        {
            *last_ms += duration_ms;
            return Ok(());
        }
        self.flush();
        let still = encode::webp(&pixel_layout::normalize(small.clone().into()), self.quality)?;
        let still = WebP::from_bytes(still.into()).map_err(bug)?;
        let mut picture = BytesMut::new();
        for chunk in still.chunks() {
            if [CHUNK_ALPH, CHUNK_VP8, CHUNK_VP8L].contains(&chunk.id()) {
                self.has_alpha |= chunk.id() != CHUNK_VP8;
                picture.put(chunk.clone().encoder().bytes());
            }
        }
        self.last = Some((small, picture.freeze(), duration_ms));
        Ok(())
    }

    /// The size of the upright animation, in pixels.
    pub fn size(&self) -> Size {
        oriented_size(self.viewport.size, self.orientation)
    }

    fn flush(&mut self) {
        let Size { width, height } = self.size();
        let Some((_, picture, duration_ms)) = self.last.take() else { return };
        let mut frame = BytesMut::new();
        // The position on the canvas, in pairs of pixels.
        frame.put_uint_le(0, 3);
        frame.put_uint_le(0, 3);
        frame.put_uint_le(u64::from(width - 1), 3);
        frame.put_uint_le(u64::from(height - 1), 3);
        frame.put_uint_le(duration_ms.into(), 3);
        // No blending, no disposal.
        frame.put_u8(0b10);
        frame.put(picture);
        self.chunks.push(RiffChunk::new(CHUNK_ANMF, RiffContent::Data(frame.freeze())));
    }

    /// Returns the whole file.
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
