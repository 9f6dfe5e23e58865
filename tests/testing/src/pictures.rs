//! Generated pictures, so that no binary files are committed. Each seed gives different bytes.

use std::io::Cursor;

use anyhow::Result;
use image::{
    ExtendedColorType, ImageEncoder, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage,
    codecs::jpeg::JpegEncoder,
};

/// The dimensions of the picture that all benchmarks use: a JPEG of about 800 KB.
pub const REFERENCE: (u32, u32) = (2725, 2225);

/// A JPEG with gradients, edges and grain, which costs a codec about as much as a photograph. The same seed
/// gives the same bytes.
pub fn jpeg(width: u32, height: u32, seed: u64) -> Result<Vec<u8>> {
    let picture = photo(width, height, seed);
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90).write_image(
        picture.as_raw(),
        width,
        height,
        ExtendedColorType::Rgb8,
    )?;
    Ok(bytes)
}

/// The JPEG with an EXIF orientation (1–8).
pub fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    // One little-endian IFD with one entry: tag 0x0112, type SHORT, count 1.
    let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    with_segment(jpeg, 0xE1, &exif)
}

/// The JPEG with a comment: the same picture in other bytes, without encoding it again.
pub fn with_comment(jpeg: &[u8], comment: &str) -> Vec<u8> {
    with_segment(jpeg, 0xFE, comment.as_bytes())
}

/// The first half of a JPEG: a valid header with missing pixels.
pub fn truncated(jpeg: &[u8]) -> Vec<u8> {
    jpeg[..jpeg.len() / 2].to_vec()
}

/// Text that starts like a JPEG: it is detected as one, but cannot be decoded.
pub fn disguised_text() -> Vec<u8> {
    b"\xFF\xD8\xFF\xE0 Here should have been a picture.\n".to_vec()
}

/// Text that is not detected as an image.
pub fn text() -> Vec<u8> {
    b"Here should have been a picture.\n".to_vec()
}

/// A PNG whose left half is transparent.
pub fn png_with_alpha(width: u32, height: u32, seed: u64) -> Result<Vec<u8>> {
    let photo = photo(width, height, seed);
    let picture = RgbaImage::from_fn(width, height, |x, y| {
        let Rgb([r, g, b]) = *photo.get_pixel(x, y);
        Rgba([r, g, b, if x < width / 2 { 0 } else { 255 }])
    });
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

/// A GIF of one frame.
pub fn gif(width: u32, height: u32, seed: u64) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    photo(width, height, seed).write_to(&mut bytes, ImageFormat::Gif)?;
    Ok(bytes.into_inner())
}

/// Puts a segment right after the start-of-image marker.
fn with_segment(jpeg: &[u8], marker: u8, content: &[u8]) -> Vec<u8> {
    // The length includes its own two bytes; longer content is truncated.
    let length = u16::try_from(content.len() + 2).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(jpeg.len() + content.len() + 4);
    bytes.extend_from_slice(&jpeg[..2]);
    bytes.extend([0xFF, marker]);
    bytes.extend(length.to_be_bytes());
    bytes.extend_from_slice(&content[..usize::from(length) - 2]);
    bytes.extend_from_slice(&jpeg[2..]);
    bytes
}

/// Gradients, tiles with hard edges, and grain. Uses only integers, so debug builds are fast.
fn photo(width: u32, height: u32, seed: u64) -> RgbImage {
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let hue = random.to_be_bytes()[2] / 8;
    RgbImage::from_fn(width, height, |x, y| {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let grain = random.to_be_bytes()[0] >> 5;
        let slope = |value: u32, end: u32| u8::try_from(value * 200 / end.max(1)).unwrap_or(200);
        let tile = if (x / 160 + y / 120) % 3 == 0 { 40 } else { 0 };
        let red = slope(x, width).wrapping_add(grain);
        let green = slope(y, height).saturating_add(tile).saturating_add(grain);
        let blue = slope(x + y, width + height).saturating_add(grain);
        Rgb([red.saturating_add(hue), green, blue.saturating_add(tile)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_pictures_have_their_format_and_size() -> Result<()> {
        let jpeg = jpeg(320, 200, 1)?;
        for (bytes, format) in [
            (jpeg.clone(), ImageFormat::Jpeg),
            (with_comment(&jpeg, "hello"), ImageFormat::Jpeg),
            (with_orientation(&jpeg, 6), ImageFormat::Jpeg),
            (png_with_alpha(320, 200, 1)?, ImageFormat::Png),
            (gif(320, 200, 1)?, ImageFormat::Gif),
        ] {
            assert_eq!(image::guess_format(&bytes)?, format);
            let picture = image::load_from_memory(&bytes)?;
            assert_eq!((picture.width(), picture.height()), (320, 200));
        }
        assert!(image::load_from_memory(&disguised_text()).is_err());
        assert!(image::guess_format(&text()).is_err());
        Ok(())
    }

    #[test]
    fn same_seed_gives_same_bytes() -> Result<()> {
        assert_eq!(jpeg(64, 48, 7)?, jpeg(64, 48, 7)?);
        assert_ne!(jpeg(64, 48, 7)?, jpeg(64, 48, 8)?);
        Ok(())
    }

    #[test]
    fn reference_picture_is_about_800_kb() -> Result<()> {
        let bytes = jpeg(REFERENCE.0, REFERENCE.1, 1)?.len();
        assert!((700_000..900_000).contains(&bytes), "{bytes} bytes");
        Ok(())
    }
}
