//! What a page shows until the rendition has come: a blur of a few bytes, and a colour.

use std::collections::HashMap;

use image::RgbaImage;
use safelight_domain::Placeholder;

/// The longest side, in pixels, of the small picture that a placeholder is made of: a `ThumbHash` is
/// made of at most 100, and shows no more of them than of this many, at a tenth of the cost.
pub(super) const LOOK: u32 = 32;

/// Makes the placeholder of an upright picture of at most [`LOOK`] pixels each way.
pub(super) fn placeholder(small: &RgbaImage) -> Placeholder {
    let (width, height) = (small.width() as usize, small.height() as usize);
    let thumbhash = thumbhash::rgba_to_thumb_hash(width, height, small);
    Placeholder { thumbhash, dominant_color: dominant(small) }
}

/// The mean of the most frequent sort of colour; colours are sorted by their first four bits. What
/// is transparent does not count.
fn dominant(small: &RgbaImage) -> [u8; 3] {
    let mut sorts: HashMap<[u8; 3], (u32, [u32; 3])> = HashMap::new();
    for pixel in small.pixels() {
        let [red, green, blue, alpha] = pixel.0;
        let (weight, sums) = sorts.entry([red >> 4, green >> 4, blue >> 4]).or_default();
        *weight += u32::from(alpha);
        for (sum, sample) in sums.iter_mut().zip([red, green, blue]) {
            *sum += u32::from(sample) * u32::from(alpha);
        }
    }
    let most = sorts.iter().max_by_key(|(sort, (weight, _))| (*weight, **sort));
    let Some((_, (weight, sums))) = most else { return [0; 3] };
    sums.map(|sum| u8::try_from(sum.checked_div(*weight).unwrap_or(0)).unwrap_or(u8::MAX))
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)] // made samples are small numbers
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_colour_dominates() {
        let small = RgbaImage::from_fn(10, 10, |x, y| match (x, y) {
            (0..=5, _) => [200, 30, 30 + (y % 2) as u8, 255].into(),
            (6, _) => [0, 0, 0, 0].into(),
            _ => [(25 * y) as u8, (25 * x) as u8, 255, 255].into(),
        });
        let placeholder = placeholder(&small);
        assert_eq!(placeholder.dominant_color, [200, 30, 30]);
        assert!((5..=25).contains(&placeholder.thumbhash.len()));
        // The hash holds the mean colour: it leans to red, too.
        let (red, _, _, _) =
            thumbhash::thumb_hash_to_average_rgba(&placeholder.thumbhash).expect("a hash");
        assert!(red > 0.4, "{red}");
        let clear = RgbaImage::new(3, 3);
        assert_eq!(dominant(&clear), [0; 3]);
    }
}
