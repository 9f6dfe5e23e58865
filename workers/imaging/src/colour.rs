//! Colour profiles: everything becomes sRGB.

use std::sync::Arc;

use image::{DynamicImage, GrayImage, RgbImage};
use moxcms::{
    CicpProfile, ColorProfile, DataColorSpace, Layout, RenderingIntent, Transform8BitExecutor,
    TransformOptions,
};
use safelight_domain::Failure;

use super::bug;

/// A profile that moves no colour by more than this many of 255 steps says sRGB in other words, as
/// most of those that cameras write do.
const SAME: u8 = 2;

/// Steps of each channel in which a profile is compared with sRGB.
const PROBES: u8 = 6;

/// A way from a picture's colours to sRGB.
pub(super) struct ToSrgb {
    transform: Arc<Transform8BitExecutor>,
    layout: Layout,
}

impl ToSrgb {
    /// By an ICC profile for samples of this layout. `None` if there is nothing to do: the profile
    /// is as good as sRGB, cannot be read, or is for another kind of picture. (A damaged profile
    /// is no reason to refuse a picture; browsers ignore it, too.)
    pub fn from_icc(icc: &[u8], layout: Layout) -> Option<Self> {
        Self::new(&ColorProfile::new_from_slice(icc).ok()?, layout)
    }

    /// By the numbers that video formats and PNG use (ITU-T H.273).
    pub fn from_cicp(cicp: CicpProfile, layout: Layout) -> Option<Self> {
        Self::new(&ColorProfile::new_from_cicp(cicp), layout)
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
            // What browsers and libvips take: with inks it keeps the steps between dark tones.
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
        (is_cmyk || !to_srgb.changes_nothing()).then_some(to_srgb)
    }

    fn changes_nothing(&self) -> bool {
        let steps = (0..PROBES).map(|step| step * (u8::MAX / (PROBES - 1)));
        let (probes, expected): (Vec<u8>, Vec<u8>) = match self.layout {
            Layout::Gray => (steps.clone().collect(), steps.flat_map(|grey| [grey; 3]).collect()),
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
            && found.iter().zip(&expected).all(|(a, b)| a.abs_diff(*b) <= SAME)
    }

    /// The picture in sRGB. One of another layout stays as it is.
    pub fn apply(&self, image: DynamicImage) -> Result<DynamicImage, Failure> {
        match (image, self.layout) {
            (DynamicImage::ImageLuma8(grey), Layout::Gray) => {
                let rgb = self.to_rgb(&grey, grey.width(), grey.height())?;
                // Grey stays grey.
                let grey = rgb.pixels().map(|pixel| pixel.0[1]).collect();
                GrayImage::from_raw(rgb.width(), rgb.height(), grey)
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

    /// Samples of the layout as RGB.
    pub fn to_rgb(&self, samples: &[u8], width: u32, height: u32) -> Result<RgbImage, Failure> {
        let mut rgb = RgbImage::new(width, height);
        self.transform.transform(samples, &mut rgb).map_err(bug)?;
        Ok(rgb)
    }
}

/// CMYK without a profile, 255 being no ink, as RGB: the plain product of paper and inks.
pub(super) fn plain_cmyk(samples: &[u8], width: u32, height: u32) -> RgbImage {
    let mut rgb = RgbImage::new(width, height);
    let (inks, _) = samples.as_chunks::<4>();
    for (pixel, [cyan, magenta, yellow, black]) in rgb.pixels_mut().zip(inks) {
        let through = |ink: u8| {
            let light = u16::from(ink) * u16::from(*black) / 255;
            u8::try_from(light).unwrap_or(u8::MAX)
        };
        pixel.0 = [through(*cyan), through(*magenta), through(*yellow)];
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn srgb_in_other_words_changes_nothing() {
        let icc = ColorProfile::new_srgb().encode().expect("a profile");
        assert!(ToSrgb::from_icc(&icc, Layout::Rgb).is_none());
        assert!(ToSrgb::from_icc(b"no profile", Layout::Rgb).is_none());
        // A profile for another kind of picture.
        let grey = ColorProfile::new_gray_with_gamma(2.2).encode().expect("a profile");
        assert!(ToSrgb::from_icc(&grey, Layout::Rgb).is_none());
    }

    #[test]
    fn a_wide_gamut_is_brought_in() {
        let icc = ColorProfile::new_display_p3().encode().expect("a profile");
        let to_srgb = ToSrgb::from_icc(&icc, Layout::Rgb).expect("another gamut");
        let p3 = RgbImage::from_pixel(1, 1, [200, 100, 100].into());
        let srgb = to_srgb.apply(p3.into()).expect("converted").into_rgb8();
        // By the matrices of both: linear P3 to linear sRGB, each with sRGB's curve.
        let [red, green, blue] = srgb.get_pixel(0, 0).0;
        assert!(
            red.abs_diff(214) <= 2 && green.abs_diff(95) <= 2 && blue.abs_diff(97) <= 2,
            "{srgb:?}"
        );
    }

    #[test]
    fn inks_without_a_profile_darken_the_paper() {
        let rgb = plain_cmyk(&[255, 255, 255, 255, 0, 255, 255, 255, 255, 255, 255, 0], 3, 1);
        assert_eq!(rgb.as_raw(), &[255, 255, 255, 0, 255, 255, 0, 0, 0]);
    }
}
