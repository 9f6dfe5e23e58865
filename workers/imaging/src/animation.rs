//! Decodes animated GIF and WebP and encodes animated WebP, with one frame in memory at a time.
//!
//! The Rust bindings of libwebp's animation encoder need all frames at once. So each frame is encoded as
//! a still picture and put into the container here: RFC 9649, section 2.7.1 (`ANIM` and `ANMF` chunks).

use bytes::{BufMut, Bytes, BytesMut};
use image::{RgbaImage, metadata::Orientation};
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
    gif::Gif,
    orientation::oriented_size,
    picture::{Picture, Pixels},
    pixel_layout,
    planes::Sampling,
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
    icc: Option<&'a [u8]>,
    pub frames: Box<dyn Iterator<Item = Result<AnimationFrame, Failure>> + 'a>,
}

impl<'a> Animation<'a> {
    /// Opens a GIF or WebP with this number of frames.
    pub fn open(bytes: &'a [u8], format: ImageFormat, frames: u32) -> Result<Self, Failure> {
        let shown = |(canvas, duration_ms)| AnimationFrame { canvas, duration_ms };
        match format {
            ImageFormat::Gif => {
                let gif = Gif::read(bytes, frames)?;
                let plays = gif.plays;
                let frames = Box::new(gif.canvases().map(move |frame| frame.map(shown)));
                Ok(Self { plays, icc: None, frames })
            }
            ImageFormat::Webp => {
                let animated = webp::Animated::open(bytes).ok_or_else(damaged)?;
                let plays = animated.plays;
                let frames = Box::new(animated.canvases().map(move |frame| frame.map(shown)));
                Ok(Self { plays, icc: webp::chunk(bytes, *b"ICCP"), frames })
            }
            _ => Err(bug("the format has no animations")),
        }
    }

    /// Converts the colors of the canvases to sRGB; `None` if they already are.
    pub fn color(&self) -> Option<ToSrgb> {
        self.icc.and_then(|icc| ToSrgb::from_icc(icc, Layout::Rgba))
    }
}

/// The first frame of a GIF or WebP, as a still picture.
pub(super) fn first_frame(bytes: &[u8], format: ImageFormat) -> Result<Picture, Failure> {
    let mut animation = Animation::open(bytes, format, 1)?;
    let first = animation.frames.next().ok_or_else(damaged)??;
    let image = pixel_layout::normalize(first.canvas.into());
    // An opaque frame has another layout than the canvases.
    let layout = pixel_layout::icc_layout(&image);
    let color = animation.icc.and_then(|icc| ToSrgb::from_icc(icc, layout));
    Ok(Picture::full(image, color))
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
