//! What a picture's header announces: enough to refuse it before anything large is allocated.

use image::{ImageDecoder, metadata::Orientation};
use safelight_domain::{ErrorCode, Failure, ImageFacts, ImageFormat, Size};

use super::{Limits, animation, avif, jpeg, limits::area, metadata::Metadata, raster, webp};

/// What decoding may take beside pixels, in bytes: the program's own tables, profiles, text chunks.
const OVERHEAD: u64 = 8 << 20;

/// What a header announces.
pub(super) struct Header {
    pub format: ImageFormat,
    /// As coded (before the turn), in pixels.
    pub size: Size,
    /// More than 1 in animations.
    pub frames: u32,
    /// The turn that the container itself asks for, where EXIF has no say.
    pub turn: Option<Orientation>,
    /// More of it, in a JPEG.
    pub jpeg: Option<jpeg::Header>,
}

impl Header {
    /// Reads it and holds it against the limits. `bytes` may be cut off after the header.
    pub fn read(bytes: &[u8], limits: Limits) -> Result<Self, Failure> {
        let Some(format) = ImageFormat::sniff(bytes) else {
            let why = "the bytes are no known picture format";
            return Err(Failure::new(ErrorCode::NotAnImage, why));
        };
        let (header, memory) = match format {
            ImageFormat::Jpeg => Self::of_jpeg(bytes)?,
            ImageFormat::Webp => Self::of_webp(bytes)?,
            ImageFormat::Avif => Self::of_avif(bytes)?,
            _ => Self::of_others(bytes, format, limits)?,
        };
        let Size { width, height } = header.size;
        limits.check_size(width, height)?;
        limits.check_frames(header.frames, width, height)?;
        limits.check_memory(memory.saturating_add(OVERHEAD + bytes.len() as u64))?;
        Ok(header)
    }

    fn new(format: ImageFormat, (width, height): (u32, u32)) -> Self {
        Self { format, size: Size { width, height }, frames: 1, turn: None, jpeg: None }
    }

    fn of_jpeg(bytes: &[u8]) -> Result<(Self, u64), Failure> {
        let Some(header) = jpeg::Header::read(bytes) else { return Err(damaged()) };
        if header.precision != 8 {
            return Err(Failure::new(
                ErrorCode::UnsupportedFormat,
                format!("a JPEG of {} bits per sample cannot be decoded", header.precision),
            ));
        }
        let memory = jpeg::memory(&header);
        let size = (header.width, header.height);
        Ok((Self { jpeg: Some(header), ..Self::new(ImageFormat::Jpeg, size) }, memory))
    }

    fn of_webp(bytes: &[u8]) -> Result<(Self, u64), Failure> {
        let (size, frames) = webp::header(bytes)?;
        // What libwebp works on, what it gives, and what becomes of it; of an animation, the canvas
        // and a frame on it.
        let memory = 12 * area(size.0, size.1);
        Ok((Self { frames, ..Self::new(ImageFormat::Webp, size) }, memory))
    }

    fn of_avif(bytes: &[u8]) -> Result<(Self, u64), Failure> {
        let header = avif::header(bytes)?;
        let samples = if header.bit_depth > 8 { 2 } else { 1 };
        // The planes, at worst full ones, twice: the decoder keeps a reference; then RGBA.
        let memory = area(header.width, header.height) * (6 * samples + 4);
        let turn = Orientation::from_exif(header.turn);
        let size = header.shown();
        Ok((Self { turn, ..Self::new(ImageFormat::Avif, size) }, memory))
    }

    fn of_others(
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
        // Beside what is decoded, another copy: of 8 bits, or with colour multiplied by alpha.
        let colour = decoder.color_type();
        let plain = matches!(colour, image::ColorType::L8 | image::ColorType::Rgb8);
        let copy = if plain { 0 } else { 4 * area(size.0, size.1) };
        let memory = decoder.total_bytes().saturating_add(copy);
        Ok((Self { frames, ..Self::new(format, size) }, memory))
    }
}

/// Whether a picture's first bytes are likely to hold all that [`inspect`] looks at. The other
/// formats may keep their directory or EXIF behind the pixels, or have frames to be counted.
pub fn head_suffices(head: &[u8]) -> bool {
    matches!(ImageFormat::sniff(head), Some(ImageFormat::Jpeg | ImageFormat::Bmp) | None)
}

/// The facts of a picture from its header and metadata; EXIF that cannot be read counts as absent.
/// Given only the first bytes of a picture, it may fail where the whole would not.
pub fn inspect(bytes: &[u8], limits: Limits) -> Result<ImageFacts, Failure> {
    let header = Header::read(bytes, limits)?;
    let Metadata { orientation, taken_at, gps, .. } = Metadata::read(bytes);
    let orientation = header.turn.map_or(orientation, Orientation::to_exif);
    let Size { width, height } = header.size;
    Ok(ImageFacts { format: header.format, width, height, orientation, taken_at, gps })
}

/// What is said of bytes that begin like a picture and do not go on like one.
pub(super) fn damaged() -> Failure {
    Failure::new(ErrorCode::CorruptImage, "the picture is damaged or cut short")
}
