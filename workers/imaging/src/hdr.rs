//! High dynamic range: PQ and HLG (ITU-R BT.2100) to sRGB.
//!
//! Diffuse white is 203 cd/m² (ITU-R BT.2408). The curve of ITU-R BT.2390, section 5.4, maps the range of the
//! content to a screen whose white is that: up to about 90 cd/m² nothing changes, diffuse white becomes
//! nearly white, and highlights keep their differences above it.

use image::{DynamicImage, RgbImage, RgbaImage};
use safelight_domain::Failure;

use crate::{
    failure::bug,
    limits::area,
    srgb::{byte, encoded},
};

/// Diffuse white, in cd/m².
const WHITE: f32 = 203.0;

/// The peak of content that does not announce its own, and the nominal peak of HLG, in cd/m².
const USUAL_PEAK: f32 = 1000.0;

/// The peak of PQ, in cd/m².
const PQ_PEAK: f32 = 10_000.0;

/// The number of steps of the tables, minus one.
const STEPS: u16 = 4095;

/// Linear BT.2020 to linear BT.709 (ITU-R BT.2087).
const FROM_BT2020: [[f32; 3]; 3] = [
    [1.660_491, -0.587_641_1, -0.072_849_9],
    [-0.124_550_5, 1.132_899_9, -0.008_349_4],
    [-0.018_150_8, -0.100_578_9, 1.118_729_7],
];

/// Linear P3 with a white of D65 to linear BT.709.
const FROM_P3: [[f32; 3]; 3] = [
    [1.224_940_2, -0.224_940_2, 0.0],
    [-0.042_056_9, 1.042_056_9, 0.0],
    [-0.019_637_6, -0.078_636_1, 1.098_273_7],
];

const FROM_BT709: [[f32; 3]; 3] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transfer {
    Pq,
    Hlg,
}

/// Converts the colors of a high dynamic range to sRGB.
#[derive(Debug)]
pub(crate) struct ToneMap {
    transfer: Transfer,
    primaries: [[f32; 3]; 3],
    /// The brightest value of the content, in cd/m².
    peak: f32,
    /// By sample value: cd/m² for PQ, scene light of 0 to 1 for HLG.
    light: Vec<f32>,
    /// By the root of scene light: the factor of HLG's system gamma.
    system_gamma: Vec<f32>,
    /// By the root of the brightest channel relative to `peak`: its factor.
    gain: Vec<f32>,
    /// By the root of linear light: the value in sRGB.
    srgb: Vec<f32>,
}

impl ToneMap {
    /// For these code points (ITU-T H.273); `None` if they are not of high dynamic range. `peak` is the
    /// brightest value of the content in cd/m², if known.
    pub fn new(primaries: u8, transfer: u8, peak: Option<f32>) -> Option<Self> {
        let transfer = match transfer {
            16 => Transfer::Pq,
            18 => Transfer::Hlg,
            _ => return None,
        };
        let peak = match transfer {
            Transfer::Pq => peak.unwrap_or(USUAL_PEAK).clamp(WHITE, PQ_PEAK),
            Transfer::Hlg => USUAL_PEAK,
        };
        let light = match transfer {
            Transfer::Pq => table(|value| PQ_PEAK * from_pq(value)),
            Transfer::Hlg => table(from_hlg),
        };
        Some(Self {
            transfer,
            primaries: match primaries {
                1 => FROM_BT709,
                11 | 12 => FROM_P3,
                _ => FROM_BT2020,
            },
            peak,
            light,
            system_gamma: table(|root| root.powf(2.0 * 0.2)),
            gain: table(|root| {
                let light = root * root * peak;
                if light > 0.0 { compressed(light, peak) / light } else { 1.0 }
            }),
            srgb: table(|root| encoded(root * root)),
        })
    }

    /// Converts a row in place: samples of 0 to 1.
    pub fn apply(&self, [red, green, blue]: [&mut [f32]; 3]) {
        for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
            [*red, *green, *blue] = self.pixel([*red, *green, *blue]);
        }
    }

    fn pixel(&self, samples: [f32; 3]) -> [f32; 3] {
        let mut light = samples.map(|sample| look_up(&self.light, sample));
        if self.transfer == Transfer::Hlg {
            let [red, green, blue] = light;
            let luminance = 0.2627 * red + 0.678 * green + 0.0593 * blue;
            let factor = USUAL_PEAK * look_up(&self.system_gamma, luminance.sqrt());
            light = light.map(|channel| channel * factor);
        }
        let brightest = light.iter().copied().fold(0.0, f32::max);
        let gain = if brightest > self.peak {
            WHITE / brightest
        } else {
            look_up(&self.gain, (brightest / self.peak).sqrt())
        };
        let light = light.map(|channel| channel * gain / WHITE);
        self.primaries.map(|[red, green, blue]| {
            let mixed = red * light[0] + green * light[1] + blue * light[2];
            look_up(&self.srgb, mixed.clamp(0.0, 1.0).sqrt())
        })
    }

    /// Converts a picture of any depth to 8-bit RGB or RGBA.
    pub fn apply_to_image(&self, image: &DynamicImage) -> Result<DynamicImage, Failure> {
        let (width, height) = (image.width(), image.height());
        let has_alpha = image.color().has_alpha();
        let channels = if has_alpha { 4 } else { 3 };
        let length = usize::try_from(area(width, height) * channels).map_err(bug)?;
        // Exactly as much as the header's check counts.
        let mut samples = Vec::with_capacity(length);
        // A row at a time: as floats, the whole picture would take too much memory.
        for y in 0..height {
            let row = image.crop_imm(0, y, width, 1).into_rgba32f();
            for pixel in row.pixels() {
                let [red, green, blue, alpha] = pixel.0;
                samples.extend(self.pixel([red, green, blue]).map(byte));
                if has_alpha {
                    samples.push(byte(alpha));
                }
            }
        }
        let image = if has_alpha {
            RgbaImage::from_raw(width, height, samples).map(DynamicImage::from)
        } else {
            RgbImage::from_raw(width, height, samples).map(DynamicImage::from)
        };
        image.ok_or_else(|| bug("a row is missing"))
    }
}

fn table(function: impl Fn(f32) -> f32) -> Vec<f32> {
    (0..=STEPS).map(|step| function(f32::from(step) / f32::from(STEPS))).collect()
}

/// The nearest entry for a value of 0 to 1.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
fn look_up(table: &[f32], value: f32) -> f32 {
    let index = (value.clamp(0.0, 1.0) * f32::from(STEPS) + 0.5) as usize;
    table.get(index).copied().unwrap_or_default()
}

/// The PQ curve: a sample to light, both 0 to 1 (BT.2100, table 4).
fn from_pq(sample: f32) -> f32 {
    let root = sample.powf(1.0 / 78.843_75);
    ((root - 0.835_937_5).max(0.0) / (18.851_563 - 18.687_5 * root)).powf(1.0 / 0.159_301_76)
}

/// The reverse of [`from_pq`].
fn to_pq(light: f32) -> f32 {
    let power = light.powf(0.159_301_76);
    ((0.835_937_5 + 18.851_563 * power) / (1.0 + 18.687_5 * power)).powf(78.843_75)
}

/// The HLG curve: a sample to scene light, both 0 to 1 (BT.2100, table 5).
fn from_hlg(sample: f32) -> f32 {
    const A: f32 = 0.178_832_77;
    const B: f32 = 0.284_668_92;
    const C: f32 = 0.559_910_7;
    if sample <= 0.5 { sample * sample / 3.0 } else { (((sample - C) / A).exp() + B) / 12.0 }
}

/// Light of content with this peak on a screen that ends at [`WHITE`], all in cd/m² (BT.2390, 5.4.1).
fn compressed(light: f32, peak: f32) -> f32 {
    let content = to_pq(peak / PQ_PEAK);
    let screen = to_pq(WHITE / PQ_PEAK) / content;
    let value = to_pq(light / PQ_PEAK) / content;
    let knee = 1.5 * screen - 0.5;
    if value <= knee || screen >= 1.0 {
        return light;
    }
    let t = (value - knee) / (1.0 - knee);
    let (t2, t3) = (t * t, t * t * t);
    let value = (2.0 * t3 - 3.0 * t2 + 1.0) * knee
        + (t3 - 2.0 * t2 + t) * (1.0 - knee)
        + (3.0 * t2 - 2.0 * t3) * screen;
    PQ_PEAK * from_pq(value * content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(primaries: u8, transfer: u8, peak: Option<f32>, pixel: [f32; 3]) -> [u8; 3] {
        let map = ToneMap::new(primaries, transfer, peak).expect("of high dynamic range");
        map.pixel(pixel).map(byte)
    }

    fn gray_pq(nits: f32) -> [f32; 3] {
        [to_pq(nits / PQ_PEAK); 3]
    }

    #[test]
    fn diffuse_white_is_nearly_white_and_highlights_stay_apart() {
        let found = [0.0, 50.0, 100.0, 203.0, 400.0, 700.0, 1000.0, 4000.0]
            .map(|nits| mapped(9, 16, None, gray_pq(nits))[1]);
        let expected = [0_u8, 137, 187, 229, 249, 254, 255, 255];
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.abs_diff(expected) <= 3, "{found} is not {expected}");
        }
        assert!(found[..7].is_sorted());
    }

    #[test]
    fn hlg_white_is_nearly_white() {
        // 75 % is diffuse white (BT.2408, table 1).
        let white = mapped(9, 18, None, [0.75; 3]);
        assert!(white.iter().all(|channel| channel.abs_diff(229) <= 4), "{white:?}");
        assert_eq!(mapped(9, 18, None, [1.0; 3]), [255; 3]);
        assert_eq!(mapped(9, 18, None, [0.0; 3]), [0; 3]);
    }

    #[test]
    fn content_without_highlights_is_not_compressed() {
        assert_eq!(mapped(9, 16, Some(203.0), gray_pq(203.0)), [255; 3]);
        assert_eq!(mapped(9, 16, Some(100.0), gray_pq(203.0)), [255; 3]);
        // Brighter content needs more room.
        let bright = mapped(9, 16, Some(4000.0), gray_pq(203.0))[0];
        assert!((200..229).contains(&bright), "{bright}");
    }

    #[test]
    fn pixels_take_no_more_memory_than_counted() {
        let map = ToneMap::new(9, 18, None).expect("of high dynamic range");
        let white = image::Rgb([u8::MAX; 3]);
        let mapped = map.apply_to_image(&RgbImage::from_pixel(5, 5, white).into());
        let samples = mapped.expect("made here").into_rgb8().into_raw();
        assert_eq!((samples.len(), samples.capacity()), (75, 75));
        let white = image::Rgba([u8::MAX; 4]);
        let mapped = map.apply_to_image(&RgbaImage::from_pixel(5, 5, white).into());
        assert_eq!(mapped.expect("made here").into_rgba8().into_raw(), [u8::MAX; 100]);
    }

    #[test]
    fn primaries_are_converted() {
        // A red of BT.709 in BT.2020 (BT.2087), at 50 cd/m².
        let red = [0.6274, 0.0691, 0.0164].map(|share: f32| to_pq(share * 50.0 / PQ_PEAK));
        let found = mapped(9, 16, None, red);
        assert!(found[0].abs_diff(137) <= 3 && found[1] <= 8 && found[2] <= 8, "{found:?}");
        let pure = [50.0, 0.0, 0.0].map(|nits: f32| to_pq(nits / PQ_PEAK));
        let found = mapped(1, 16, None, pure);
        assert!(found[0].abs_diff(137) <= 3 && found[1..] == [0, 0], "{found:?}");
        // The same light in P3 and, by the published matrix, in BT.709.
        let nits = [0.577_58, 0.127_44, 0.127_44].map(|light: f32| to_pq(light * 50.0 / PQ_PEAK));
        for primaries in [11, 12] {
            let found = mapped(primaries, 16, None, nits);
            let expected =
                [0.678_84, 0.108_51, 0.118_6].map(|light| byte(encoded(light * 50.0 / WHITE)));
            let is_near = found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 2);
            assert!(is_near, "{found:?} is not {expected:?}");
        }
        assert!(ToneMap::new(9, 13, None).is_none());
    }
}
