//! Reads a picture's header and rejects what exceeds the limits before anything large is allocated.

use image::metadata::Orientation;
use safelight_domain::{ErrorCode, Failure, ImageFacts, ImageFormat, Size};

use crate::{
    bmp,
    failure::damaged,
    gif::Gif,
    heif::decode as heif,
    jpeg,
    limits::{Limits, area},
    metadata::Metadata,
    png, tiff, webp,
};

/// Memory that decoding may need besides pixels, in bytes: tables, profiles, text chunks.
const OVERHEAD: u64 = 8 << 20;

/// The properties that a header announces.
pub(super) struct Header {
    pub format: ImageFormat,
    /// As coded (before rotation), in pixels.
    pub size: Size,
    /// 1 unless the picture is animated.
    pub frames: u32,
    /// The orientation that the container itself sets; it overrides EXIF.
    pub orientation: Option<Orientation>,
    /// The full header of a JPEG.
    pub jpeg: Option<jpeg::Header>,
}

impl Header {
    /// Reads the header and checks it against the limits. `bytes` may be cut off after the header.
    pub fn read(bytes: &[u8], limits: Limits) -> Result<Self, Failure> {
        let Some(format) = ImageFormat::sniff(bytes) else {
            let message = "the bytes are no known picture format";
            return Err(Failure::new(ErrorCode::NotAnImage, message));
        };
        let (header, memory) = match format {
            ImageFormat::Jpeg => Self::read_jpeg(bytes)?,
            ImageFormat::Webp => Self::read_webp(bytes, limits)?,
            ImageFormat::Avif | ImageFormat::Heic => Self::read_heif(bytes, format, limits)?,
            ImageFormat::Gif => Self::read_gif(bytes, limits)?,
            ImageFormat::Tiff => Self::read_tiff(bytes)?,
            ImageFormat::Bmp => {
                let (size, memory) = bmp::header(bytes)?;
                (Self { size, ..Self::new(format, (0, 0)) }, memory)
            }
            ImageFormat::Png => {
                if let Some(Size { width, height }) = png::announced_size(bytes) {
                    limits.check_size(width, height)?;
                }
                let (size, memory) = png::header(bytes)?;
                (Self { size, ..Self::new(format, (0, 0)) }, memory)
            }
        };
        let Size { width, height } = header.size;
        limits.check_size(width, height)?;
        limits.check_frames(header.frames, width, height)?;
        limits.check_memory(memory.saturating_add(OVERHEAD + bytes.len() as u64))?;
        Ok(header)
    }

    fn new(format: ImageFormat, (width, height): (u32, u32)) -> Self {
        Self { format, size: Size { width, height }, frames: 1, orientation: None, jpeg: None }
    }

    fn read_jpeg(bytes: &[u8]) -> Result<(Self, u64), Failure> {
        let Some(header) = jpeg::Header::read(bytes) else { return Err(damaged()) };
        if let Some(variant) = header.unsupported() {
            let message = format!("{variant} cannot be decoded");
            return Err(Failure::new(ErrorCode::UnsupportedFormat, message));
        }
        let memory = jpeg::decode_memory(&header, bytes.len());
        let size = (header.width, header.height);
        Ok((Self { jpeg: Some(header), ..Self::new(ImageFormat::Jpeg, size) }, memory))
    }

    fn read_webp(bytes: &[u8], limits: Limits) -> Result<(Self, u64), Failure> {
        let (size, frames) = webp::header(bytes, limits.max_frames)?;
        // libwebp's working memory, its output, and our copy; for an animation, the canvas twice.
        let canvas = if webp::is_animated(bytes) { 8 } else { 0 };
        let memory = (12 + canvas) * area(size.0, size.1);
        Ok((Self { frames, ..Self::new(ImageFormat::Webp, size) }, memory))
    }

    fn read_heif(
        bytes: &[u8],
        format: ImageFormat,
        limits: Limits,
    ) -> Result<(Self, u64), Failure> {
        let header = heif::header(bytes, limits.heic)?;
        let memory = header.decode_memory();
        let orientation = Orientation::from_exif(header.orientation);
        let size = header.visible_size();
        Ok((Self { orientation, ..Self::new(format, size) }, memory))
    }

    fn read_gif(bytes: &[u8], limits: Limits) -> Result<(Self, u64), Failure> {
        let gif = Gif::read(bytes, limits.max_frames.saturating_add(1))?;
        let size = (gif.width, gif.height);
        // Frames are decompressed as a whole, also those that are larger than the screen.
        limits.check_animation(gif.frames(), gif.frame_pixels())?;
        // The canvas, a copy of it, and what a frame restores; one frame as indices and as RGBA.
        let memory = 12 * area(size.0, size.1) + 5 * gif.largest_frame();
        Ok((Self { frames: gif.frames(), ..Self::new(ImageFormat::Gif, size) }, memory))
    }

    fn read_tiff(bytes: &[u8]) -> Result<(Self, u64), Failure> {
        let tiff::Header { size, orientation, memory } = tiff::header(bytes)?;
        Ok((Self { size, orientation, ..Self::new(ImageFormat::Tiff, (0, 0)) }, memory))
    }
}

/// Whether a picture's first bytes are likely to contain everything that [`inspect`] reads. Other
/// formats may store their directory or EXIF after the pixels, or have frames to count.
pub fn head_suffices(head: &[u8]) -> bool {
    matches!(ImageFormat::sniff(head), Some(ImageFormat::Jpeg | ImageFormat::Bmp) | None)
}

/// Reads a picture's facts from its header and metadata. Unreadable EXIF counts as absent. With only
/// the first bytes of a picture it may fail where it would succeed with all of them.
pub fn inspect(bytes: &[u8], limits: Limits) -> Result<ImageFacts, Failure> {
    let header = Header::read(bytes, limits)?;
    let Metadata { orientation, taken_at, gps, .. } = Metadata::read(bytes);
    let orientation = header.orientation.map_or(orientation, Orientation::to_exif);
    let Size { width, height } = header.size;
    Ok(ImageFacts { format: header.format, width, height, orientation, taken_at, gps })
}
