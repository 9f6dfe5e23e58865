//! The curve of sRGB (IEC 61966-2-1).

/// Light to a sample, both 0 to 1.
pub(super) fn encoded(light: f32) -> f32 {
    if light <= 0.003_130_8 { 12.92 * light } else { 1.055 * light.powf(1.0 / 2.4) - 0.055 }
}

/// A sample of 0 to 1 as one of 8 bits. Values beyond that range are clamped.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
pub(super) fn byte(sample: f32) -> u8 {
    (sample.clamp(0.0, 1.0) * 255.0 + 0.5) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_samples() {
        // By the standard's formula: the dark end is a line.
        let found = [-1.0, 0.0, 0.002, 0.215_86, 0.5, 1.0, 9.0].map(|light| byte(encoded(light)));
        assert_eq!(found, [0, 0, 7, 128, 188, 255, 255]);
    }
}
