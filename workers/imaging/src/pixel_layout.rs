//! The three pixel layouts that every decoder delivers: 8-bit gray, RGB and RGBA.

use image::DynamicImage;
use moxcms::Layout;

/// Converts a picture to 8-bit gray, RGB or RGBA. RGBA remains only if at least one pixel is not
/// opaque.
pub(super) fn normalize(image: DynamicImage) -> DynamicImage {
    let image = match image {
        DynamicImage::ImageLuma8(_) | DynamicImage::ImageRgb8(_) | DynamicImage::ImageRgba8(_) => {
            image
        }
        DynamicImage::ImageLuma16(_) => DynamicImage::ImageLuma8(image.into_luma8()),
        other if other.color().has_alpha() => DynamicImage::ImageRgba8(other.into_rgba8()),
        other => DynamicImage::ImageRgb8(other.into_rgb8()),
    };
    match &image {
        DynamicImage::ImageRgba8(pixels) if pixels.pixels().all(|pixel| pixel.0[3] == u8::MAX) => {
            DynamicImage::ImageRgb8(image.into_rgb8())
        }
        _ => image,
    }
}

/// The layout of a normalized picture in the terms of color profiles.
pub(super) fn icc_layout(image: &DynamicImage) -> Layout {
    match image {
        DynamicImage::ImageLuma8(_) => Layout::Gray,
        DynamicImage::ImageRgba8(_) => Layout::Rgba,
        _ => Layout::Rgb,
    }
}
