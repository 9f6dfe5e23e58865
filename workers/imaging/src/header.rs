//! Reads a picture's header and rejects what exceeds the limits before anything large is allocated.

use image::{ImageDecoder, metadata::Orientation};
use safelight_domain::{ErrorCode, Failure, ImageFacts, ImageFormat, Size};

use crate::{
    animation, avif,
    failure::damaged,
    jpeg,
    limits::{Limits, area},
    metadata::Metadata,
    raster, webp,
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
            ImageFormat::Webp => Self::read_webp(bytes)?,
            ImageFormat::Avif => Self::read_avif(bytes)?,
            _ => Self::read_other(bytes, format, limits)?,
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
        if header.precision != 8 {
            return Err(Failure::new(
                ErrorCode::UnsupportedFormat,
                format!("a JPEG of {} bits per sample cannot be decoded", header.precision),
            ));
        }
        let memory = jpeg::decode_memory(&header);
        let size = (header.width, header.height);
        Ok((Self { jpeg: Some(header), ..Self::new(ImageFormat::Jpeg, size) }, memory))
    }

    fn read_webp(bytes: &[u8]) -> Result<(Self, u64), Failure> {
        let (size, frames) = webp::header(bytes)?;
        // libwebp's working memory, its output, and our copy; for an animation, the canvas and one frame.
        let memory = 12 * area(size.0, size.1);
        Ok((Self { frames, ..Self::new(ImageFormat::Webp, size) }, memory))
    }

    fn read_avif(bytes: &[u8]) -> Result<(Self, u64), Failure> {
        let header = avif::header(bytes)?;
        let samples = if header.bit_depth > 8 { 2 } else { 1 };
        // Three full planes twice, because the decoder keeps a reference frame; then RGBA.
        let memory = area(header.width, header.height) * (6 * samples + 4);
        let orientation = Orientation::from_exif(header.orientation);
        let size = header.visible_size();
        Ok((Self { orientation, ..Self::new(ImageFormat::Avif, size) }, memory))
    }

    fn read_other(
        bytes: &[u8],
        format: ImageFormat,
        limits: Limits,
    ) -> Result<(Self, u64), Failure> {
        let decoder = raster::decoder(bytes, format)?;
        let size = decoder.dimensions();
        let frames = match format {
            ImageFormat::Gif => animation::gif_frames(bytes, limits.max_frames)?,
            _ => 1,
        };
        // Besides the decoded pixels, a copy: in 8 bits, or with color multiplied by alpha.
        let color = decoder.color_type();
        let is_plain = matches!(color, image::ColorType::L8 | image::ColorType::Rgb8);
        let copy = if is_plain { 0 } else { 4 * area(size.0, size.1) };
        let memory = decoder.total_bytes().saturating_add(copy);
        Ok((Self { frames, ..Self::new(format, size) }, memory))
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
