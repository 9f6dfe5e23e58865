//! CIE L*a*b* (TIFF 6.0, section 23) to sRGB.

use super::page::Color;
use crate::srgb::{byte, encoded};

/// The 8 bits of one of 16: the lightness is the first channel. Chroma has 8 bits after the point, and a sign in the
/// encoding of TIFF; in that of ICC profiles (ICC.1:2001-04, 6.3.4.2) the lightness has them, too, and `FF00` is white.
pub(super) fn level(sample: u64, color: Color, channel: usize) -> u8 {
    let sample = u16::try_from(sample).unwrap_or(u16::MAX);
    match (color, channel) {
        (Color::IccLab, _) => (sample.saturating_add(128) >> 8).to_be_bytes()[1],
        (_, 0) => u8::try_from((u32::from(sample) + 128) / 257).unwrap_or(u8::MAX),
        _ => (sample.cast_signed().saturating_add(128) >> 8).to_be_bytes()[1],
    }
}

/// Converts 8-bit L*a*b* in place. L* is from 0 to 100 over the whole range; a* and b* are signed, or, as in
/// ICC profiles, have an offset of 128.
pub(super) fn to_srgb(samples: &mut [u8], is_signed: bool) {
    for pixel in samples.as_chunks_mut::<3>().0 {
        let [lightness, a, b] = *pixel;
        let chroma = |code: u8| {
            if is_signed { f64::from(code.cast_signed()) } else { f64::from(code) - 128.0 }
        };
        let lab = [f64::from(lightness) / 255.0 * 100.0, chroma(a), chroma(b)];
        *pixel = srgb(lab);
    }
}

fn srgb([lightness, red_green, yellow_blue]: [f64; 3]) -> [u8; 3] {
    let y = (lightness + 16.0) / 116.0;
    // CIE 15, 8.2.1, solved for the tristimulus values.
    let cube = |f: f64| {
        if f > 6.0 / 29.0 { f.powi(3) } else { 3.0 * (6.0_f64 / 29.0).powi(2) * (f - 4.0 / 29.0) }
    };
    // The white point D50, as in ICC profiles.
    let (x, z) = (cube(y + red_green / 500.0) * 0.9642, cube(y - yellow_blue / 200.0) * 0.8249);
    let y = cube(y);
    // To linear sRGB, with Bradford's adaptation from D50 to D65.
    let linear = [
        3.133_856_1 * x - 1.616_866_7 * y - 0.490_614_6 * z,
        -0.978_768_4 * x + 1.916_141_5 * y + 0.033_454_0 * z,
        0.071_945_3 * x - 0.228_991_4 * y + 1.405_242_7 * z,
    ];
    #[allow(clippy::cast_possible_truncation)] // finer than 8 bits
    linear.map(|light| byte(encoded(light as f32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_become_eight() {
        let cie = |sample, channel| level(sample, Color::CieLab, channel).cast_signed();
        assert_eq!(
            [0xFFFF, 0x8000, 0].map(|sample| level(sample, Color::CieLab, 0)),
            [255, 128, 0]
        );
        assert_eq!([0xC000, 0x4000, 0].map(|sample| cie(sample, 1)), [-64, 64, 0]);
        assert_eq!([0x8000, 0x7FFF, 0xFFFF].map(|sample| cie(sample, 2)), [-128, 127, 0]);
        let icc = |channel| {
            [0xFF00, 0xFFFF, 0x8000, 0x4000, 0].map(|sample| level(sample, Color::IccLab, channel))
        };
        assert_eq!(icc(0), [255, 255, 128, 64, 0]);
        assert_eq!(icc(2), [255, 255, 128, 64, 0]);
    }

    #[test]
    fn known_colors() {
        // White, black, and sRGB's red, green and blue in L*a*b* with D50.
        let cases = [
            ([100.0, 0.0, 0.0], [255, 255, 255]),
            ([0.0, 0.0, 0.0], [0, 0, 0]),
            ([54.29, 80.81, 69.89], [255, 0, 0]),
            ([87.82, -79.27, 80.99], [0, 255, 0]),
            ([29.57, 68.30, -112.03], [0, 0, 255]),
        ];
        for (lab, expected) in cases {
            let found = srgb(lab);
            let near = found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 2);
            assert!(near, "{lab:?} is {found:?}, not {expected:?}");
        }
    }
}
