//! Color management: converts every picture to sRGB.

use std::sync::Arc;

use image::{DynamicImage, GrayImage, RgbImage};
use moxcms::{
    CicpColorPrimaries, CicpProfile, ColorProfile, DataColorSpace, Layout, MatrixCoefficients,
    RenderingIntent, TransferCharacteristics, Transform8BitExecutor, TransformOptions,
};
use safelight_domain::Failure;

use crate::failure::bug;

/// A profile that changes no color by more than this many of 255 steps counts as sRGB. Most profiles
/// that cameras write are like that.
const TOLERANCE: u8 = 2;

/// The code point for "unspecified", the same for primaries and transfer (ITU-T H.273).
const UNSPECIFIED: u8 = 2;

/// The number of probe values per channel when a profile is compared with sRGB.
const PROBES: u8 = 6;

/// Converts a picture's colors to sRGB.
pub(super) struct ToSrgb {
    transform: Arc<Transform8BitExecutor>,
    layout: Layout,
}

impl ToSrgb {
    /// From an ICC profile for samples of this layout. `None` if there is nothing to convert: the profile
    /// is close to sRGB, unreadable, or for another layout. (A damaged profile is no reason to reject a
    /// picture; browsers ignore it, too.)
    pub fn from_icc(icc: &[u8], layout: Layout) -> Option<Self> {
        Self::new(&ColorProfile::new_from_slice(icc).ok()?, layout)
    }

    /// From a profile. `is_gray` says that all three channels of the picture are equal: then it may also be
    /// one for gray pictures.
    pub fn from_profile(profile: &ColorProfile, layout: Layout, is_gray: bool) -> Option<Self> {
        if layout == Layout::Gray || !is_gray || profile.color_space != DataColorSpace::Gray {
            return Self::new(profile, layout);
        }
        let mut in_color = ColorProfile::new_srgb();
        for curve in [&mut in_color.red_trc, &mut in_color.green_trc, &mut in_color.blue_trc] {
            curve.clone_from(&profile.gray_trc);
        }
        in_color.cicp = None;
        Self::new(&in_color, layout)
    }

    /// From the code points that video formats and PNG use (ITU-T H.273). Unspecified ones stand for sRGB;
    /// with reserved ones there is nothing to convert.
    pub fn from_code_points(primaries: u8, transfer: u8, layout: Layout) -> Option<Self> {
        let color_primaries = match primaries {
            UNSPECIFIED => CicpColorPrimaries::Bt709,
            code => CicpColorPrimaries::try_from(code).ok()?,
        };
        let transfer_characteristics = match transfer {
            // These are camera curves. The curve of the screen is sRGB's, or close enough to it.
            1 | 6 | 14 | 15 | UNSPECIFIED => TransferCharacteristics::Srgb,
            code => TransferCharacteristics::try_from(code).ok()?,
        };
        let profile = ColorProfile::new_from_cicp(CicpProfile {
            color_primaries,
            transfer_characteristics,
            matrix_coefficients: MatrixCoefficients::Identity,
            full_range: true,
        });
        Self::from_space(profile, layout)
    }

    /// From a space of red, green and blue. Of a gray picture only the curve counts.
    pub fn from_space(space: ColorProfile, layout: Layout) -> Option<Self> {
        if layout != Layout::Gray {
            return Self::new(&space, layout);
        }
        let mut gray = ColorProfile::new_gray_with_gamma(2.2);
        gray.gray_trc = space.red_trc;
        Self::new(&gray, layout)
    }

    fn new(profile: &ColorProfile, layout: Layout) -> Option<Self> {
        let fits = match layout {
            Layout::Gray => profile.color_space == DataColorSpace::Gray,
            Layout::Cmyka => false,
            Layout::Rgba if profile.color_space == DataColorSpace::Cmyk => true,
            _ => profile.color_space == DataColorSpace::Rgb,
        };
        if !fits {
            return None;
        }
        let options = TransformOptions {
            // As browsers and libvips do. For CMYK it preserves the steps between dark tones.
            rendering_intent: RenderingIntent::Perceptual,
            ..TransformOptions::default()
        };
        let is_cmyk = profile.color_space == DataColorSpace::Cmyk;
        let target = match layout {
            Layout::Rgba if !is_cmyk => Layout::Rgba,
            _ => Layout::Rgb,
        };
        let transform = profile
            .create_transform_8bit(layout, &ColorProfile::new_srgb(), target, options)
            .ok()?;
        let to_srgb = Self { transform, layout };
        (is_cmyk || !to_srgb.is_identity()).then_some(to_srgb)
    }

    fn is_identity(&self) -> bool {
        let steps = (0..PROBES).map(|step| step * (u8::MAX / (PROBES - 1)));
        let (probes, expected): (Vec<u8>, Vec<u8>) = match self.layout {
            Layout::Gray => (steps.clone().collect(), steps.flat_map(|gray| [gray; 3]).collect()),
            layout => {
                let alpha = if layout == Layout::Rgba { &[u8::MAX][..] } else { &[] };
                let probes: Vec<u8> = steps
                    .clone()
                    .flat_map(|r| steps.clone().map(move |g| (r, g)))
                    .flat_map(|(r, g)| steps.clone().map(move |b| [r, g, b]))
                    .flat_map(|rgb| rgb.into_iter().chain(alpha.iter().copied()))
                    .collect();
                (probes.clone(), probes)
            }
        };
        let mut found = vec![0; expected.len()];
        self.transform.transform(&probes, &mut found).is_ok()
            && found.iter().zip(&expected).all(|(a, b)| a.abs_diff(*b) <= TOLERANCE)
    }

    /// The picture in sRGB. A picture of another layout is returned unchanged.
    pub fn apply(&self, image: DynamicImage) -> Result<DynamicImage, Failure> {
        match (image, self.layout) {
            (DynamicImage::ImageLuma8(gray), Layout::Gray) => {
                let rgb = self.to_rgb(&gray, gray.width(), gray.height())?;
                // All three channels are equal.
                let gray = rgb.pixels().map(|pixel| pixel.0[1]).collect();
                GrayImage::from_raw(rgb.width(), rgb.height(), gray)
                    .map(DynamicImage::from)
                    .ok_or_else(|| bug("a row is missing"))
            }
            (DynamicImage::ImageRgb8(rgb), Layout::Rgb) => {
                Ok(self.to_rgb(&rgb, rgb.width(), rgb.height())?.into())
            }
            (DynamicImage::ImageRgba8(mut rgba), Layout::Rgba) => {
                let from = rgba.clone();
                self.transform.transform(&from, &mut rgba).map_err(bug)?;
                Ok(rgba.into())
            }
            (image, _) => Ok(image),
        }
    }

    /// Converts samples of the layout to RGB.
    pub fn to_rgb(&self, samples: &[u8], width: u32, height: u32) -> Result<RgbImage, Failure> {
        let mut rgb = RgbImage::new(width, height);
        self.transform.transform(samples, &mut rgb).map_err(bug)?;
        Ok(rgb)
    }
}

/// Converts CMYK without a profile (255 is no ink) to RGB by multiplying the inks.
pub(super) fn uncalibrated_cmyk(samples: &[u8], width: u32, height: u32) -> RgbImage {
    let mut rgb = RgbImage::new(width, height);
    let (inks, _) = samples.as_chunks::<4>();
    for (pixel, [cyan, magenta, yellow, black]) in rgb.pixels_mut().zip(inks) {
        let mixed = |ink: u8| {
            let light = u16::from(ink) * u16::from(*black) / 255;
            u8::try_from(light).unwrap_or(u8::MAX)
        };
        pixel.0 = [mixed(*cyan), mixed(*magenta), mixed(*yellow)];
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn srgb_profile_is_ignored() {
        let icc = ColorProfile::new_srgb().encode().expect("a profile");
        assert!(ToSrgb::from_icc(&icc, Layout::Rgb).is_none());
        assert!(ToSrgb::from_icc(b"no profile", Layout::Rgb).is_none());
        // A profile for another kind of picture.
        let gray = ColorProfile::new_gray_with_gamma(2.2).encode().expect("a profile");
        assert!(ToSrgb::from_icc(&gray, Layout::Rgb).is_none());
    }

    #[test]
    fn wide_gamut_is_converted() {
        let icc = ColorProfile::new_display_p3().encode().expect("a profile");
        let to_srgb = ToSrgb::from_icc(&icc, Layout::Rgb).expect("another gamut");
        let p3 = RgbImage::from_pixel(1, 1, [200, 100, 100].into());
        let srgb = to_srgb.apply(p3.into()).expect("converted").into_rgb8();
        // Expected values: linear P3 to linear sRGB by the published matrices, each with sRGB's curve.
        let [red, green, blue] = srgb.get_pixel(0, 0).0;
        assert!(
            red.abs_diff(214) <= 2 && green.abs_diff(95) <= 2 && blue.abs_diff(97) <= 2,
            "{srgb:?}"
        );
    }

    #[test]
    fn cmyk_without_profile_multiplies_inks() {
        let rgb =
            uncalibrated_cmyk(&[255, 255, 255, 255, 0, 255, 255, 255, 255, 255, 255, 0], 3, 1);
        assert_eq!(rgb.as_raw(), &[255, 255, 255, 0, 255, 255, 0, 0, 0]);
    }
}
