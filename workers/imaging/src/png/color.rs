//! The color space that a PNG declares in chunks other than a profile (PNG, third edition, 11.3.2).

use image::DynamicImage;
use moxcms::{Chromaticity, ColorPrimaries, ColorProfile, ToneReprCurve, XyY};
use safelight_domain::Failure;

use super::chunk::{Chunk, SIGNATURE};

use crate::{
    color::ToSrgb,
    hdr::ToneMap,
    pixel_layout::{icc_layout, normalize},
};

/// `gAMA` of 1/2.2, which programs write for sRGB: in 1/100,000.
const SRGB_GAMMA: u32 = 45_455;

/// The chunks that declare colors, by their content.
#[derive(Debug, Default, PartialEq, Eq)]
struct ColorChunks {
    cicp: Option<[u8; 4]>,
    is_srgb: bool,
    /// In 1/100,000.
    gamma: Option<u32>,
    /// White, red, green and blue; x and y of each, in 1/100,000.
    chromaticities: Option<[u32; 8]>,
    /// The brightest pixel, in 0.0001 cd/m².
    brightest: Option<u32>,
}

impl ColorChunks {
    /// Reads the chunks before the pixels. What is damaged counts as absent, as in the decoder.
    fn read(bytes: &[u8]) -> Self {
        let mut chunks = Self::default();
        let mut rest = bytes.get(SIGNATURE..).unwrap_or_default();
        while let Some((chunk, after)) = Chunk::split(rest) {
            if chunk.kind == *b"IDAT" {
                break;
            }
            chunks.add(chunk);
            rest = after;
        }
        chunks
    }

    fn add(&mut self, chunk: Chunk<'_>) {
        let declares_colors =
            matches!(&chunk.kind, b"cICP" | b"sRGB" | b"gAMA" | b"cHRM" | b"cLLI");
        if !declares_colors || !chunk.has_valid_sum() {
            return;
        }
        let data = chunk.content;
        match &chunk.kind {
            b"cICP" => self.cicp = data.try_into().ok(),
            b"gAMA" => self.gamma = numbers::<1>(data).map(|[gamma]| gamma),
            b"cHRM" => self.chromaticities = numbers(data),
            b"cLLI" => self.brightest = numbers::<2>(data).map(|[brightest, _]| brightest),
            _ => self.is_srgb = true,
        }
    }

    /// What converts the picture if it has a high dynamic range.
    fn tone_map(&self) -> Option<ToneMap> {
        let [primaries, transfer, 0, _] = self.cicp? else { return None };
        let peak = self.brightest.filter(|it| *it > 0).map(candelas);
        ToneMap::new(primaries, transfer, peak)
    }

    /// The space of `gAMA` and `cHRM`.
    fn calibrated(&self) -> Option<ColorProfile> {
        if self.is_srgb || (self.gamma.is_none() && self.chromaticities.is_none()) {
            return None;
        }
        let mut profile = ColorProfile::new_srgb();
        if let Some([white_x, white_y, red_x, red_y, green_x, green_y, blue_x, blue_y]) =
            self.chromaticities
        {
            let at = |x: u32, y: u32| Chromaticity::new(share(x), share(y));
            let white = XyY { x: share(white_x).into(), y: share(white_y).into(), yb: 1.0 };
            let (red, green, blue) = (at(red_x, red_y), at(green_x, green_y), at(blue_x, blue_y));
            // No light has a y of zero, and flat triangles have no colors.
            let area = (green.x - red.x) * (blue.y - red.y) - (blue.x - red.x) * (green.y - red.y);
            if white_y == 0 || red_y == 0 || green_y == 0 || blue_y == 0 || area.abs() < 0.01 {
                return None;
            }
            profile.update_rgb_colorimetry(white, ColorPrimaries { red, green, blue });
        }
        match self.gamma {
            None | Some(0 | SRGB_GAMMA) => {}
            Some(gamma) => {
                let curve = Some(ToneReprCurve::Parametric(vec![1.0 / share(gamma)]));
                (profile.red_trc, profile.green_trc) = (curve.clone(), curve.clone());
                profile.blue_trc = curve;
            }
        }
        profile.cicp = None;
        Some(profile)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a fraction of a few digits")]
fn share(value: u32) -> f32 {
    value as f32 / 100_000.0
}

/// 0.0001 cd/m² as cd/m².
#[expect(clippy::cast_precision_loss, reason = "far less than a screen shows")]
fn candelas(value: u32) -> f32 {
    value as f32 / 10_000.0
}

fn numbers<const N: usize>(data: &[u8]) -> Option<[u32; N]> {
    let (numbers, rest) = data.as_chunks::<4>();
    let numbers: &[[u8; 4]; N] = numbers.try_into().ok()?;
    rest.is_empty().then(|| numbers.map(u32::from_be_bytes))
}

/// Whether [`resolve`] converts a high dynamic range.
pub(super) fn has_high_range(bytes: &[u8]) -> bool {
    ColorChunks::read(bytes).tone_map().is_some()
}

/// The picture as 8-bit gray, RGB or RGBA, and what converts it to sRGB. High dynamic range is converted here.
/// `cICP` counts more than a profile, a profile more than `gAMA` and `cHRM`.
pub(super) fn resolve(
    bytes: &[u8],
    icc: Option<&[u8]>,
    image: DynamicImage,
) -> Result<(DynamicImage, Option<ToSrgb>), Failure> {
    let chunks = ColorChunks::read(bytes);
    let is_gray = !image.color().has_color();
    if let Some(tone_map) = chunks.tone_map() {
        return Ok((normalize(tone_map.apply_to_image(&image)?), None));
    }
    if let Some([primaries, transfer, 0, _]) = chunks.cicp {
        let image = normalize(image);
        let color = ToSrgb::from_code_points(primaries, transfer, icc_layout(&image));
        return Ok((image, color));
    }
    let image = normalize(image);
    let layout = icc_layout(&image);
    let color = match icc {
        Some(icc) => ColorProfile::new_from_slice(icc)
            .ok()
            .and_then(|profile| ToSrgb::from_profile(&profile, layout, is_gray)),
        None => chunks.calibrated().and_then(|space| ToSrgb::from_space(space, layout)),
    };
    Ok((image, color))
}

#[cfg(test)]
mod tests {
    use image::{GrayAlphaImage, GrayImage, ImageFormat, Luma, LumaA, Rgb, RgbImage};

    use super::{super::chunk::checksum, *};

    /// A PNG with these chunks after its header.
    fn png(image: &DynamicImage, chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png).expect("encode");
        let bytes = bytes.into_inner();
        let (head, rest) = bytes.split_at(33);
        let chunk = |(kind, data): &(&[u8; 4], &[u8])| {
            let length = u32::try_from(data.len()).expect("small").to_be_bytes();
            let sum = checksum(**kind, data).to_be_bytes();
            [&length[..], &kind[..], data, &sum].concat()
        };
        let chunks: Vec<u8> = chunks.iter().flat_map(chunk).collect();
        [head, &chunks, rest].concat()
    }

    /// The first pixel after the conversion.
    fn shown(image: DynamicImage, icc: Option<&[u8]>, chunks: &[(&[u8; 4], &[u8])]) -> [u8; 3] {
        let bytes = png(&image, chunks);
        let (image, color) = resolve(&bytes, icc, image).expect("made here");
        let image = match color {
            Some(color) => color.apply(image).expect("converted"),
            None => image,
        };
        image.to_rgb8().get_pixel(0, 0).0
    }

    fn flat(color: [u8; 3]) -> DynamicImage {
        RgbImage::from_pixel(2, 2, Rgb(color)).into()
    }

    fn assert_close(found: [u8; 3], expected: [u8; 3]) {
        let far = found.iter().zip(expected).any(|(a, b)| a.abs_diff(b) > 2);
        assert!(!far, "{found:?} is not {expected:?}");
    }

    #[test]
    fn code_points_count_more_than_profiles() {
        let icc = ColorProfile::new_srgb().encode().expect("a profile");
        let p3: (&[u8; 4], &[u8]) = (b"cICP", &[12, 13, 0, 1]);
        // As in `color::tests`, by the published matrices.
        for icc in [None, Some(&icc[..])] {
            assert_close(shown(flat([200, 100, 100]), icc, &[p3]), [214, 95, 97]);
        }
        let srgb: (&[u8; 4], &[u8]) = (b"cICP", &[1, 13, 0, 1]);
        assert_eq!(shown(flat([200, 100, 100]), None, &[srgb]), [200, 100, 100]);
    }

    #[test]
    fn chunks_with_wrong_checksums_are_ignored() {
        let colors: [(&[u8; 4], &[u8]); 3] =
            [(b"cICP", &[12, 13, 0, 1]), (b"gAMA", &100_000_u32.to_be_bytes()), (b"sRGB", &[0])];
        for chunk in colors {
            let mut bytes = png(&flat([200, 100, 100]), &[chunk]);
            assert_ne!(ColorChunks::read(&bytes), ColorChunks::default());
            bytes[33 + 8 + chunk.1.len()] ^= 1;
            assert_eq!(ColorChunks::read(&bytes), ColorChunks::default(), "{chunk:?}");
        }
    }

    #[test]
    fn gray_has_the_curve_of_code_points() {
        let gray = GrayImage::from_pixel(2, 2, Luma([128]));
        for code in [9, 2] {
            let found = shown(gray.clone().into(), None, &[(b"cICP", &[code, 8, 0, 1])]);
            assert_close(found, [188; 3]);
        }
    }

    #[test]
    fn brightest_pixel_is_read_exactly() {
        assert!((candelas(20_305_678) - 2_030.567_8).abs() < 0.001);
        // 203 cd/m² at most: nothing is compressed.
        let image = image::ImageBuffer::from_pixel(2, 2, Rgb([38_054; 3]));
        let chunks: &[(&[u8; 4], &[u8])] =
            &[(b"cICP", &[9, 16, 0, 1]), (b"cLLI", &[0, 0x1E, 0xF9, 0xF0, 0, 0, 0, 1])];
        assert_close(shown(DynamicImage::ImageRgb16(image), None, chunks), [255; 3]);
    }

    #[test]
    fn pq_and_hlg_are_tone_mapped() {
        // 203 cd/m², with 16 bits.
        let value = 38_054;
        let image = image::ImageBuffer::from_pixel(2, 2, Rgb([value; 3]));
        let chunks: &[(&[u8; 4], &[u8])] = &[(b"cICP", &[9, 16, 0, 1])];
        assert_close(shown(DynamicImage::ImageRgb16(image), None, chunks), [229; 3]);
        let chunks: &[(&[u8; 4], &[u8])] = &[(b"cICP", &[9, 18, 0, 1])];
        assert_close(shown(flat([191; 3]), None, chunks), [228; 3]);
    }

    #[test]
    fn memory_counts_the_copy_of_tone_mapping() {
        let memory = |transfer| {
            let bytes = png(&flat([191; 3]), &[(b"cICP", &[9, transfer, 0, 1])]);
            super::super::header(&bytes).expect("made here").1
        };
        assert_eq!(memory(16) - memory(13), 4 * 2 * 2);
    }

    #[test]
    fn gamma_and_chromaticities_are_applied() {
        // Linear light: 0.5 is 188 in sRGB.
        let linear: (&[u8; 4], &[u8]) = (b"gAMA", &100_000_u32.to_be_bytes());
        assert_close(shown(flat([128; 3]), None, &[linear]), [188; 3]);
        let gray = GrayImage::from_pixel(2, 2, Luma([128]));
        assert_close(shown(gray.into(), None, &[linear]), [188; 3]);
        // 1/2.2 stands for sRGB, and `sRGB` and profiles count more.
        let usual: (&[u8; 4], &[u8]) = (b"gAMA", &45_455_u32.to_be_bytes());
        assert_eq!(shown(flat([30, 60, 90]), None, &[usual]), [30, 60, 90]);
        assert_eq!(shown(flat([128; 3]), None, &[(b"sRGB", &[0]), linear]), [128; 3]);
        let icc = ColorProfile::new_srgb().encode().expect("a profile");
        assert_eq!(shown(flat([128; 3]), Some(&icc), &[linear]), [128; 3]);
        // The primaries of Display P3.
        let p3 = [31_270_u32, 32_900, 68_000, 32_000, 26_500, 69_000, 15_000, 6_000];
        let p3: Vec<u8> = p3.iter().flat_map(|share| share.to_be_bytes()).collect();
        assert_close(shown(flat([200, 100, 100]), None, &[(b"cHRM", &p3)]), [214, 95, 97]);
        for nonsense in [vec![0; 32], vec![255; 32], vec![1; 7]] {
            let found = shown(flat([200, 100, 100]), None, &[(b"cHRM", &nonsense)]);
            assert_eq!(found, [200, 100, 100]);
        }
    }

    #[test]
    fn gray_profile_applies_to_gray_with_alpha() {
        let icc = ColorProfile::new_gray_with_gamma(1.0).encode().expect("a profile");
        let image = GrayAlphaImage::from_pixel(2, 2, LumaA([128, 100]));
        assert_close(shown(image.into(), Some(&icc), &[]), [188; 3]);
        // But not to a colorful picture.
        assert_eq!(shown(flat([128, 90, 20]), Some(&icc), &[]), [128, 90, 20]);
    }
}
