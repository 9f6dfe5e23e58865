//! The size that clients are told, beside that of the renditions.

use super::*;

/// Sides that make rounding matter; a fixed sequence.
fn sides() -> impl Iterator<Item = (u32, u32)> {
    let mut state = 7_u32;
    let mut next = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        3 + (state >> 16) % 200
    };
    std::iter::repeat_with(move || (next(), next())).take(6)
}

#[test]
fn renditions_have_the_aspect_of_the_upright_size() {
    for (width, height) in sides() {
        let picture = RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, 99]));
        for orientation in 1_u16..=8 {
            let exif = exif_block(&[(Tag::Orientation, Value::Short(vec![orientation]))]);
            let bytes = jpeg_with_exif(&picture, &exif);
            let upright = inspect(&bytes, LIMITS).expect("facts").upright_size();
            for side in [37, 1000] {
                let (one, _) = render_one(&bytes, side, PresetFormat::Auto);
                let scale = f64::from(side) / f64::from(upright.width.max(upright.height));
                for (found, full) in
                    [(one.rendition.width, upright.width), (one.rendition.height, upright.height)]
                {
                    let exact = f64::from(full) * scale.min(1.0);
                    let off = (f64::from(found) - exact.max(1.0)).abs();
                    assert!(off <= 0.51, "{width} × {height}, {orientation}: {found} for {exact}");
                }
            }
        }
    }
}
