//! The renditions of a picture.

use bytes::Bytes;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::{DynamicImage, metadata::Orientation};
use safelight_common::domain::{
    ContentHash, ErrorCode, Failure, ImageFormat, Preset, Presets, Rendition,
};

use super::{
    Limits, decodable,
    decode::decode,
    encode::{WEBP_MAX_SIDE, choose, encode},
    metadata::Metadata,
};

/// A rendition with its bytes.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// What the store records of it.
    pub rendition: Rendition,
    /// The encoded picture, without metadata.
    pub data: Bytes,
}

/// Makes one rendition per preset: upright, within the preset's square, never enlarged. The picture
/// is decoded once. `stopped` is asked between the steps; once it says so the work ends early with
/// a failure that nobody will look at.
pub fn render(
    bytes: &[u8],
    presets: &Presets,
    limits: Limits,
    stopped: &dyn Fn() -> bool,
) -> Result<Vec<Rendered>, Failure> {
    let format = decodable(bytes)?;
    let turn = Metadata::read(bytes).turn();
    let mut pyramid = Pyramid::new(decode(bytes, format, limits)?);
    // From the largest down, so that smaller ones can be made of larger ones.
    let mut order: Vec<(&String, &Preset)> = presets.iter().collect();
    order.sort_by_key(|(_, preset)| std::cmp::Reverse(preset.size));
    let mut rendered = Vec::with_capacity(order.len());
    for (name, preset) in order {
        if stopped() {
            return Err(Failure::new(ErrorCode::LeaseLost, "the attempt was stopped"));
        }
        rendered.push(one(&mut pyramid, turn, name, preset)?);
    }
    Ok(rendered)
}

fn one(
    pyramid: &mut Pyramid,
    turn: Orientation,
    name: &str,
    preset: &Preset,
) -> Result<Rendered, Failure> {
    let format = choose(preset.format, &pyramid.original);
    let size = match format {
        ImageFormat::Webp => preset.size.min(WEBP_MAX_SIDE),
        _ => preset.size,
    };
    let small = pyramid.fit(size)?;
    let upright;
    let image = if turn == Orientation::NoTransforms {
        small
    } else {
        let mut turned = small.clone();
        turned.apply_orientation(turn);
        upright = turned;
        &upright
    };
    let data = Bytes::from(encode(image, format, preset.quality)?);
    let rendition = Rendition {
        preset: name.to_owned(),
        fingerprint: preset.fingerprint(),
        format,
        width: image.width(),
        height: image.height(),
        bytes: data.len() as u64,
        sha256: ContentHash::of(&data),
    };
    Ok(Rendered { rendition, data })
}

/// A picture and the smaller ones made of it so far, all as coded (not turned).
struct Pyramid {
    original: DynamicImage,
    /// From large to small.
    smaller: Vec<DynamicImage>,
    resizer: Resizer,
}

impl Pyramid {
    fn new(original: DynamicImage) -> Self {
        Self { original, smaller: Vec::new(), resizer: Resizer::new() }
    }

    /// The picture within a square of `size`; the original if it fits.
    fn fit(&mut self, size: u32) -> Result<&DynamicImage, Failure> {
        let (width, height) = fit(self.original.width(), self.original.height(), size);
        if (width, height) == (self.original.width(), self.original.height()) {
            return Ok(&self.original);
        }
        // A picture of at least twice the size has all the detail that the target can show, and is
        // much less to read than the original.
        let source = self
            .smaller
            .iter()
            .rfind(|image| image.width() >= 2 * width && image.height() >= 2 * height)
            .unwrap_or(&self.original);
        let mut target = DynamicImage::new(width, height, source.color());
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
        self.resizer.resize(source, &mut target, &options).map_err(|error| {
            tracing::error!(%error, "the resizer refused a picture");
            Failure::new(ErrorCode::WorkerPanicked, "the picture could not be resized")
        })?;
        self.smaller.push(target);
        Ok(self.smaller.last().unwrap_or(&self.original))
    }
}

/// The size of a picture within a square of `size`: aspect kept, rounded, at least one pixel, never
/// enlarged.
fn fit(width: u32, height: u32, size: u32) -> (u32, u32) {
    let longest = u64::from(width.max(height)).max(1);
    let wanted = u64::from(size);
    if longest <= wanted {
        return (width, height);
    }
    let scaled = |side: u32| {
        let rounded = (u64::from(side) * wanted + longest / 2) / longest;
        u32::try_from(rounded).unwrap_or(size).max(1)
    };
    (scaled(width), scaled(height))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_the_aspect_and_never_grow() {
        let cases = [
            ((2725, 2225, 256), (256, 209)),
            ((2225, 2725, 256), (209, 256)),
            ((100, 50, 256), (100, 50)),
            ((256, 256, 256), (256, 256)),
            ((10_000, 1, 100), (100, 1)),
            ((1, 1, 1), (1, 1)),
        ];
        for ((width, height, size), expected) in cases {
            assert_eq!(fit(width, height, size), expected, "{width}×{height} in {size}");
        }
    }
}
