//! Planes to 8-bit pixels.

use image::{DynamicImage, GrayImage, RgbImage, RgbaImage};
use re_rav1d::dav1d::{PixelLayout, PlanarImageComponent as Component};
use yuv::{YuvError, YuvPlanarImage, YuvRange, YuvStandardMatrix};

use super::{
    bitstream::Frame,
    error::AvifError::{self, Corrupt, OutOfMemory, Unsupported},
    properties::{Cicp, UNSPECIFIED},
};

/// Combines the planes into a picture: gray, RGB, or RGBA if there is alpha.
pub(super) fn assemble(
    color: &Frame,
    alpha: Option<&Frame>,
    cicp: Cicp,
) -> Result<DynamicImage, AvifError> {
    let (width, height) = color.size;
    let gray = color.picture.pixel_layout() == PixelLayout::I400;
    let channels = match alpha {
        Some(_) => 4,
        None if gray => 1,
        None => 3,
    };
    let mut pixels = if gray {
        let luma = [Component::Y; 3];
        from_planes(color, &luma[..channels.min(3)], channels, cicp.full_range)?
    } else if cicp.matrix == 0 {
        if color.picture.pixel_layout() != PixelLayout::I444 {
            return Err(Corrupt);
        }
        let red_green_blue = [Component::V, Component::Y, Component::U];
        from_planes(color, &red_green_blue, channels, cicp.full_range)?
    } else {
        from_yuv(color, channels, cicp)?
    };
    if let Some(alpha) = alpha {
        let levels = levels(alpha.depth(), alpha.sequence.cicp.full_range);
        alpha.write_plane(Component::Y, &levels, pixels.iter_mut().skip(3).step_by(4))?;
    }
    match channels {
        1 => GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8),
        3 => RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8),
        _ => RgbaImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgba8),
    }
    .ok_or(Corrupt)
}

/// The 8-bit value of every possible sample, rounded.
pub(super) fn levels(depth: usize, full_range: bool) -> Vec<u8> {
    let most = (1_u32 << depth) - 1;
    let (low, range) = if full_range { (0, most) } else { (16 << (depth - 8), 219 << (depth - 8)) };
    (0..=most)
        .map(|sample: u32| {
            let level = (sample.saturating_sub(low) * 255 + range / 2) / range;
            u8::try_from(level).unwrap_or(u8::MAX)
        })
        .collect()
}

/// Memory for the picture, zeroed.
pub(super) fn allocate(size: (u32, u32), channels: usize) -> Result<Vec<u8>, AvifError> {
    let length = size.0 as usize * size.1 as usize * channels;
    let mut memory = Vec::new();
    memory.try_reserve_exact(length).map_err(|_| OutOfMemory)?;
    memory.resize(length, 0);
    Ok(memory)
}

/// Interleaves planes without conversion: plane 0 becomes channel 0, and so on.
pub(super) fn from_planes(
    frame: &Frame,
    planes: &[Component],
    channels: usize,
    full_range: bool,
) -> Result<Vec<u8>, AvifError> {
    let levels = levels(frame.depth(), full_range);
    let mut pixels = allocate(frame.size, channels)?;
    for (channel, &component) in planes.iter().enumerate() {
        frame.write_plane(component, &levels, pixels.iter_mut().skip(channel).step_by(channels))?;
    }
    Ok(pixels)
}

/// A conversion to RGB or RGBA of 8 bits.
pub(super) type Conversion<T> =
    fn(&YuvPlanarImage<'_, T>, &mut [u8], u32, YuvRange, YuvStandardMatrix) -> Result<(), YuvError>;

/// Converts luma and chroma to 3 or 4 channels. Alpha, if any, is opaque.
pub(super) fn from_yuv(frame: &Frame, channels: usize, cicp: Cicp) -> Result<Vec<u8>, AvifError> {
    if frame.depth() == 8 {
        let conversion = conversion_8(frame.picture.pixel_layout(), channels);
        return convert::<u8>(frame, channels, cicp, conversion);
    }
    match conversion_16(frame.picture.pixel_layout(), frame.depth(), channels) {
        Some(conversion) => convert::<u16>(frame, channels, cicp, conversion),
        // `yuv` cannot convert 10-bit 4:4:4 to RGB.
        None => Ok(drop_alpha(convert::<u16>(frame, 4, cicp, yuv::i410_to_rgba)?)),
    }
}

/// The conversion for 8-bit samples. Interpolates subsampled chroma.
pub(super) fn conversion_8(layout: PixelLayout, channels: usize) -> Conversion<u8> {
    match (layout, channels) {
        (PixelLayout::I420, 3) => yuv::yuv420_to_rgb_bilinear,
        (PixelLayout::I420, _) => yuv::yuv420_to_rgba_bilinear,
        (PixelLayout::I422, 3) => yuv::yuv422_to_rgb_bilinear,
        (PixelLayout::I422, _) => yuv::yuv422_to_rgba_bilinear,
        (_, 3) => yuv::yuv444_to_rgb,
        _ => yuv::yuv444_to_rgba,
    }
}

/// The conversion for samples of 10 or 12 bits, if there is one.
pub(super) fn conversion_16(
    layout: PixelLayout,
    depth: usize,
    channels: usize,
) -> Option<Conversion<u16>> {
    Some(match (layout, depth, channels) {
        (PixelLayout::I420, 10, 3) => yuv::i010_to_rgb,
        (PixelLayout::I420, 10, _) => yuv::i010_to_rgba,
        (PixelLayout::I420, _, 3) => yuv::i012_to_rgb,
        (PixelLayout::I420, _, _) => yuv::i012_to_rgba,
        (PixelLayout::I422, 10, 3) => yuv::i210_to_rgb,
        (PixelLayout::I422, 10, _) => yuv::i210_to_rgba,
        (PixelLayout::I422, _, 3) => yuv::i212_to_rgb,
        (PixelLayout::I422, _, _) => yuv::i212_to_rgba,
        (_, 10, 3) => return None,
        (_, 10, _) => yuv::i410_to_rgba,
        (_, _, 3) => yuv::i412_to_rgb,
        _ => yuv::i412_to_rgba,
    })
}

/// Applies a conversion to a frame whose samples are `T`.
pub(super) fn convert<T: bytemuck::AnyBitPattern + std::fmt::Debug>(
    frame: &Frame,
    channels: usize,
    cicp: Cicp,
    conversion: Conversion<T>,
) -> Result<Vec<u8>, AvifError> {
    let (width, height) = frame.size;
    let [y, u, v] = [Component::Y, Component::U, Component::V].map(|c| frame.picture.plane(c));
    let samples = |plane| bytemuck::try_cast_slice(plane).map_err(|_| Corrupt);
    let sample_bytes = u32::try_from(size_of::<T>()).map_err(|_| Corrupt)?;
    let stride = |component| frame.picture.stride(component) / sample_bytes;
    let planes = YuvPlanarImage {
        y_plane: samples(&y)?,
        y_stride: stride(Component::Y),
        u_plane: samples(&u)?,
        u_stride: stride(Component::U),
        v_plane: samples(&v)?,
        v_stride: stride(Component::V),
        width,
        height,
    };
    let range = if cicp.full_range { YuvRange::Full } else { YuvRange::Limited };
    let matrix = matrix(cicp)?;
    let mut pixels = allocate(frame.size, channels)?;
    let row_bytes = u32::try_from(width as usize * channels).map_err(|_| Corrupt)?;
    conversion(&planes, &mut pixels, row_bytes, range, matrix).map_err(|_| Corrupt)?;
    Ok(pixels)
}

/// The matrix of a code point.
pub(super) fn matrix(cicp: Cicp) -> Result<YuvStandardMatrix, AvifError> {
    Ok(match (cicp.matrix, cicp.primaries) {
        (1, _) | (12, 1) => YuvStandardMatrix::Bt709,
        (4, _) => YuvStandardMatrix::Fcc,
        (7, _) => YuvStandardMatrix::Smpte240,
        (9, _) | (12, 9) => YuvStandardMatrix::Bt2020,
        // MIAF: BT.601 is the default.
        (5 | 6 | UNSPECIFIED, _) | (12, 5 | 6) => YuvStandardMatrix::Bt601,
        _ => return Err(Unsupported("matrix coefficients")),
    })
}

/// Converts RGBA to RGB, in place.
pub(super) fn drop_alpha(mut pixels: Vec<u8>) -> Vec<u8> {
    let count = pixels.len() / 4;
    for pixel in 1..count {
        pixels.copy_within(pixel * 4..pixel * 4 + 3, pixel * 3);
    }
    pixels.truncate(count * 3);
    pixels
}

/// Divides the colors by alpha, rounding.
pub(super) fn unpremultiply(image: &mut RgbaImage) {
    for pixel in image.pixels_mut() {
        let [red, green, blue, alpha] = pixel.0;
        if matches!(alpha, 0 | u8::MAX) {
            continue;
        }
        let alpha_wide = u32::from(alpha);
        let divide = |value: u8| {
            let divided = (u32::from(value) * 255 + alpha_wide / 2) / alpha_wide;
            u8::try_from(divided).unwrap_or(u8::MAX)
        };
        pixel.0 = [divide(red), divide(green), divide(blue), alpha];
    }
}
