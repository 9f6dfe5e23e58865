//! The placeholder that a page shows until the rendition is loaded: a blurred preview of a few bytes, and a
//! color.

use std::collections::HashMap;

use image::RgbaImage;
use safelight_domain::Placeholder;

/// The longest side, in pixels, of the picture that a placeholder is made from. A `ThumbHash` allows 100,
/// but shows no more detail than with this size, at ten times the cost.
pub(super) const SAMPLE_SIDE: u32 = 32;

/// Makes the placeholder of an upright picture of at most [`SAMPLE_SIDE`] pixels each way.
pub(super) fn placeholder(small: &RgbaImage) -> Placeholder {
    let (width, height) = (small.width() as usize, small.height() as usize);
    let thumbhash = thumbhash::rgba_to_thumb_hash(width, height, small);
    Placeholder { thumbhash, dominant_color: dominant_color(small) }
}

/// The mean color of the largest bucket, weighted by alpha. The upper four bits of each channel select a
/// color's bucket.
fn dominant_color(small: &RgbaImage) -> [u8; 3] {
    let mut buckets: HashMap<[u8; 3], (u32, [u32; 3])> = HashMap::new();
    for pixel in small.pixels() {
        let [red, green, blue, alpha] = pixel.0;
        let (weight, sums) = buckets.entry([red >> 4, green >> 4, blue >> 4]).or_default();
        *weight += u32::from(alpha);
        for (sum, sample) in sums.iter_mut().zip([red, green, blue]) {
            *sum += u32::from(sample) * u32::from(alpha);
        }
    }
    let most = buckets.iter().max_by_key(|(bucket, (weight, _))| (*weight, **bucket));
    let Some((_, (weight, sums))) = most else { return [0; 3] };
    sums.map(|sum| u8::try_from(sum.checked_div(*weight).unwrap_or(0)).unwrap_or(u8::MAX))
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // made samples are small numbers
mod tests {
    use super::*;

    #[test]
    fn most_frequent_color_dominates() {
        let small = RgbaImage::from_fn(10, 10, |x, y| match (x, y) {
            (0..=5, _) => [200, 30, 30 + (y % 2) as u8, 255].into(),
            (6, _) => [0, 0, 0, 0].into(),
            _ => [(25 * y) as u8, (25 * x) as u8, 255, 255].into(),
        });
        let placeholder = placeholder(&small);
        assert_eq!(placeholder.dominant_color, [200, 30, 30]);
        assert!((5..=25).contains(&placeholder.thumbhash.len()));
        // The hash holds the mean color: it leans to red, too.
        let (red, _, _, _) =
            thumbhash::thumb_hash_to_average_rgba(&placeholder.thumbhash).expect("a hash");
        assert!(red > 0.4, "{red}");
        let clear = RgbaImage::new(3, 3);
        assert_eq!(dominant_color(&clear), [0; 3]);
    }
}
