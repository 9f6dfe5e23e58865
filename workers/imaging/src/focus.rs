//! Finds the part of a picture that attracts attention.

use image::RgbImage;

use crate::geometry::{Region, Viewport};

/// The longest side, in pixels, of the small copy that is analyzed.
pub(super) const SAMPLE_SIDE: u32 = 128;

/// How much less the edge of a picture counts than its center: of two equal parts, the one closer to the
/// center is kept.
const EDGE_PENALTY: f32 = 0.2;

/// The minimum interest of a pixel, so that the center wins in a picture without features.
const MIN_INTEREST: f32 = 0.01;

/// Moves the region of a viewport, in the direction in which it crops, to the most interesting part.
/// `small` is the whole picture, scaled down.
pub(super) fn follow_attention(viewport: Viewport, full: (f64, f64), small: &RgbImage) -> Viewport {
    let interest = interest(small);
    let (width, height) = (small.width() as usize, small.height() as usize);
    let region = viewport.region;
    if region.width < full.0 {
        let columns = sums(width, |x| (0..height).map(|y| interest[y * width + x]).sum());
        let left = best_window(&columns, region.width / full.0) * full.0;
        let left = left.min(full.0 - region.width);
        Viewport { region: Region { left, ..region }, ..viewport }
    } else {
        let rows = sums(height, |y| interest[y * width..(y + 1) * width].iter().sum());
        let top = best_window(&rows, region.height / full.1) * full.1;
        let top = top.min(full.1 - region.height).max(0.0);
        Viewport { region: Region { top, ..region }, ..viewport }
    }
}

/// Scores each pixel by edges, saturation and skin color. The idea is that of smartcrop.js, which libvips
/// follows, too.
fn interest(picture: &RgbImage) -> Vec<f32> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let pixels: Vec<[f32; 3]> =
        picture.pixels().map(|pixel| pixel.0.map(|sample| f32::from(sample) / 255.0)).collect();
    let bright: Vec<f32> =
        pixels.iter().map(|[r, g, b]| 0.299 * r + 0.587 * g + 0.114 * b).collect();
    let mut interest = Vec::with_capacity(pixels.len());
    for y in 0..height {
        for x in 0..width {
            let at = y * width + x;
            let near = |x: usize, y: usize| bright[y.min(height - 1) * width + x.min(width - 1)];
            let neighbors = near(x.saturating_sub(1), y)
                + near(x + 1, y)
                + near(x, y.saturating_sub(1))
                + near(x, y + 1);
            let edge = (4.0 * bright[at] - neighbors).abs();
            interest.push(
                MIN_INTEREST
                    + 2.0 * edge
                    + 0.3 * saturation(pixels[at])
                    + 1.8 * skin_likeness(pixels[at]),
            );
        }
    }
    interest
}

/// Saturation; 0 for pixels too dark or too light to look colored.
fn saturation(pixel: [f32; 3]) -> f32 {
    let most = pixel.iter().copied().fold(0.0, f32::max);
    let least = pixel.iter().copied().fold(1.0, f32::min);
    if most > 0.1 && least < 0.9 { (most - least) / most } else { 0.0 }
}

/// How close a color is to that of skin, regardless of brightness.
fn skin_likeness([r, g, b]: [f32; 3]) -> f32 {
    const SKIN: [f32; 3] = [0.78, 0.57, 0.44];
    const NEAR: f32 = 0.1;
    let length = (r * r + g * g + b * b).sqrt();
    if length < 0.35 {
        return 0.0;
    }
    let skin_length = SKIN.iter().map(|c| c * c).sum::<f32>().sqrt();
    let pixel = [r, g, b];
    let off = pixel.iter().zip(SKIN).map(|(c, s)| c / length - s / skin_length);
    let distance = off.map(|d| d * d).sum::<f32>().sqrt();
    ((NEAR - distance) / NEAR).max(0.0)
}

fn sums(count: usize, sum: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..count).map(sum).collect()
}

/// The start of the most interesting window. `share` is its length, and both are fractions of the whole.
fn best_window(sums: &[f32], share: f64) -> f64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let window = ((share * sums.len() as f64).round() as usize).clamp(1, sums.len());
    let places = sums.len() - window;
    #[allow(clippy::cast_precision_loss)] // at most SAMPLE_SIDE of them
    let value = |start: usize| {
        let from_middle =
            (start as f32 - places as f32 / 2.0).abs() / (places as f32 / 2.0).max(1.0);
        sums[start..start + window].iter().sum::<f32>() * (1.0 - EDGE_PENALTY * from_middle)
    };
    let start = (0..=places).max_by(|a, b| value(*a).total_cmp(&value(*b))).unwrap_or(0);
    #[allow(clippy::cast_precision_loss)]
    let share = start as f64 / sums.len() as f64;
    share
}

#[cfg(test)]
mod tests {
    use safelight_domain::{Fit, Size};

    use super::*;

    #[test]
    fn region_moves_to_the_part_that_attracts_attention() {
        for (width, height) in [(128_u32, 64_u32), (64, 128)] {
            // All gray, with a colored pattern near the end of the long side.
            let small = RgbImage::from_fn(width, height, |x, y| {
                let along = x.max(y);
                let across = x.min(y);
                if (90..115).contains(&along) && (10..50).contains(&across) && (x + y) % 4 < 2 {
                    [220, 60, 40].into()
                } else {
                    [128; 3].into()
                }
            });
            let full = Size { width: 10 * width, height: 10 * height };
            let viewport = Viewport::new(full, Size::square(100), Fit::Cover);
            let moved = follow_attention(viewport, (full.width.into(), full.height.into()), &small);
            let start = moved.region.left.max(moved.region.top);
            assert!((500.0..=640.0).contains(&start), "{moved:?}");
            assert_eq!((moved.size, moved.region.width), (viewport.size, viewport.region.width));
            // Without features, the center is kept.
            let plain = RgbImage::from_pixel(width, height, [128; 3].into());
            let kept = follow_attention(viewport, (full.width.into(), full.height.into()), &plain);
            assert!((kept.region.left - viewport.region.left).abs() < 20.0, "{kept:?}");
        }
    }
}
