//! Color models, profiles and samplings: every encoding of the same colors gives the same picture.

use image::{ImageEncoder, codecs::png::PngEncoder};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use moxcms::ColorProfile;

use super::*;

/// A 96 × 64 JPEG; `set` configures the encoder.
fn quarters_jpeg(
    pixels: &[u8],
    colors: ColorType,
    set: impl FnOnce(&mut Encoder<&mut Vec<u8>>),
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 95);
    set(&mut encoder);
    encoder.encode(pixels, 96, 64, colors).expect("encode");
    bytes
}

#[test]
fn every_kind_of_jpeg_gives_the_same_picture() {
    let rgb = quarters_image().into_rgb8();
    let samplings = [
        SamplingFactor::F_1_1,
        SamplingFactor::F_2_1,
        SamplingFactor::F_1_2,
        SamplingFactor::F_2_2,
        SamplingFactor::F_4_1,
        SamplingFactor::F_4_2,
        SamplingFactor::F_1_4,
    ];
    for sampling in samplings {
        for progressive in [false, true] {
            let bytes = quarters_jpeg(&rgb, ColorType::Rgb, |encoder| {
                encoder.set_sampling_factor(sampling);
                encoder.set_progressive(progressive);
            });
            // At full size, and scaled during decoding.
            for size in [96, 48, 20] {
                let (_, image) = render_one(&bytes, size, PresetFormat::Auto);
                assert_quarters(&image, &format!("{sampling:?} {progressive} at {size}"));
            }
        }
    }
    let restarts = quarters_jpeg(&rgb, ColorType::Rgb, |encoder| encoder.set_restart_interval(2));
    assert_quarters(&render_one(&restarts, 48, PresetFormat::Png).1, "restart markers");
}

#[test]
fn cmyk_is_converted_to_rgb() {
    // Like Photoshop, the encoder writes inverted values and Adobe's marker.
    let inks: Vec<u8> = quarters_image()
        .into_rgb8()
        .pixels()
        .flat_map(|pixel| {
            let [red, green, blue] = pixel.0;
            [255 - red, 255 - green, 255 - blue, 0]
        })
        .collect();
    for colors in [ColorType::Cmyk, ColorType::CmykAsYcck] {
        let bytes = quarters_jpeg(&inks, colors, |_| ());
        for format in [PresetFormat::Auto, PresetFormat::Webp, PresetFormat::Png] {
            let (_, image) = render_one(&bytes, 48, format);
            assert_quarters(&image, &format!("{colors:?} as {format}"));
        }
    }
}

/// The sRGB value of (200, 100, 100) in Display P3, computed with the published matrices.
const FROM_P3: [u8; 3] = [214, 95, 97];

#[test]
fn wide_gamuts_become_srgb_and_profiles_are_dropped() {
    let icc = ColorProfile::new_display_p3().encode().expect("a profile");
    let flat = RgbImage::from_pixel(96, 64, Rgb([200, 100, 100]));
    let jpeg = quarters_jpeg(&flat, ColorType::Rgb, |encoder| {
        encoder.add_icc_profile(&icc).expect("a short profile");
    });
    let mut png = Vec::new();
    let mut encoder = PngEncoder::new(&mut png);
    encoder.set_icc_profile(icc.clone()).expect("supported");
    encoder.write_image(&flat, 96, 64, image::ExtendedColorType::Rgb8).expect("encode");
    let mut webp =
        img_parts::webp::WebP::from_bytes(encoded(&flat.clone().into(), Codec::WebP).into())
            .expect("a WebP");
    img_parts::ImageICC::set_icc_profile(&mut webp, Some(icc.clone().into()));
    let webp = webp.encoder().bytes().to_vec();
    for (what, bytes) in [("jpeg", jpeg), ("png", png), ("webp", webp)] {
        // At full size, and on both paths that scale.
        for size in [96, 48, 20] {
            for format in [PresetFormat::Jpeg, PresetFormat::Webp, PresetFormat::Png] {
                let (one, image) = render_one(&bytes, size, format);
                let pixel = *image.to_rgba8().get_pixel(9, 9);
                let difference = pixel.0.iter().zip(FROM_P3).map(|(a, b)| a.abs_diff(b)).max();
                assert!(difference <= Some(5), "{what} as {format} at {size}: {pixel:?}");
                let profile = icc.windows(16).nth(128).expect("long enough");
                assert!(!one.data.windows(16).any(|found| found == profile), "{what} as {format}");
            }
        }
    }
}

#[test]
fn damaged_profile_is_ignored() {
    let rgb = quarters_image().into_rgb8();
    for profile in [&b"not a profile"[..], &[0xFF; 300]] {
        let bytes = quarters_jpeg(&rgb, ColorType::Rgb, |encoder| {
            encoder.add_icc_profile(profile).expect("short");
        });
        assert_quarters(&render_one(&bytes, 48, PresetFormat::Auto).1, "a damaged profile");
    }
}

#[test]
fn scaled_jpeg_decode_keeps_quality() {
    // Gradients, edges and grain.
    let source = RgbImage::from_fn(1000, 750, |x, y| {
        let wave = |speed: f32| ((x as f32 * speed).sin() + (y as f32 * speed * 0.7).cos()) * 60.0;
        let edge = if (x / 90 + y / 70) % 2 == 0 { 25.0 } else { -25.0 };
        let grain = (x * 7 + y * 13) % 9;
        [0.011, 0.017, 0.023].map(|speed| (128.0 + wave(speed) + edge) as u8 ^ grain as u8).into()
    });
    let mut bytes = Vec::new();
    Encoder::new(&mut bytes, 90).encode(&source, 1000, 750, ColorType::Rgb).expect("encode");
    let full = image::load_from_memory(&bytes).expect("a valid picture");
    for size in [480, 240, 120] {
        let (_, rendered) = render_one(&bytes, size, PresetFormat::Jpeg);
        let (width, height) = (rendered.width(), rendered.height());
        let reference = full.resize_exact(width, height, image::imageops::FilterType::Lanczos3);
        let mut coded = Vec::new();
        let (w, h) = (width as u16, height as u16);
        let mut encoder = Encoder::new(&mut coded, 80);
        encoder.set_sampling_factor(SamplingFactor::F_2_2);
        encoder.encode(reference.as_bytes(), w, h, ColorType::Rgb).expect("encode");
        let coded = image::load_from_memory(&coded).expect("a valid picture");
        let (found, best) = (psnr(&rendered, &reference), psnr(&coded, &reference));
        assert!(
            found > best - 0.3,
            "{size}: {found:.2} dB, the encoded reference has {best:.2} dB"
        );
    }
}

/// Peak signal-to-noise ratio over all samples, in dB.
fn psnr(first: &DynamicImage, second: &DynamicImage) -> f64 {
    let (first, second) = (first.to_rgb8(), second.to_rgb8());
    let squares = first.iter().zip(second.iter()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    let mean = squares.sum::<f64>() / first.len() as f64;
    10.0 * (255.0 * 255.0 / mean).log10()
}
