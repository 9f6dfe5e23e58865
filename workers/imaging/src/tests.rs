//! Generated pictures, rendered through the whole crate.

#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]

use std::io::Cursor;

use chrono::NaiveDate;
use exif::{Field, In, Rational, Tag, Value, experimental::Writer};
use image::{DynamicImage, ImageFormat as Codec, Rgb, RgbImage, Rgba, RgbaImage};
use safelight_domain::{
    ErrorCode, Gps, ImageFormat, Preset, PresetFormat, Presets, Rendition, Size,
};

use super::*;

mod animations;
mod bmps;
mod colors;
mod containers;
mod recipes;
mod sequences;
mod tiff_builder;
mod tiff_packing;
mod tiffs;
mod tiffs_rejected;
mod upright;

pub(super) const LIMITS: Limits = Limits {
    max_pixels: 100_000_000,
    max_side: 65_535,
    max_frames: 50,
    max_animation_pixels: 10_000_000,
    max_memory: 1 << 30,
    heic: true,
};

fn presets(wanted: &[(&str, u32, PresetFormat)]) -> Presets {
    let preset = |(name, size, format): &(&str, u32, PresetFormat)| {
        (
            (*name).to_owned(),
            Preset { formats: (*format).into(), ..Preset::new(Size::square(*size)) },
        )
    };
    wanted.iter().map(preset).collect()
}

fn render(bytes: &[u8], presets: &Presets) -> Result<Renditions, Failure> {
    Renderer::new()?.render(bytes, presets, LIMITS, &|| false)
}

fn render_one(bytes: &[u8], size: u32, format: PresetFormat) -> (Rendered, DynamicImage) {
    let presets = presets(&[("p", size, format)]);
    let rendered = render(bytes, &presets).expect("a valid picture").renditions;
    let [one] = <[Rendered; 1]>::try_from(rendered).expect("one preset, one rendition");
    let image = image::load_from_memory(&one.data).expect("a readable rendition");
    assert_eq!((image.width(), image.height()), (one.rendition.width, one.rendition.height));
    assert_eq!(ImageFormat::sniff(&one.data), Some(one.rendition.format));
    assert_eq!(one.rendition.bytes, one.data.len() as u64);
    (one, image)
}

fn encoded(image: &DynamicImage, format: Codec) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).expect("encode");
    bytes.into_inner()
}

/// 96 × 64 pixels. Red at the top left, green at the top right, blue at the bottom left, white at the bottom
/// right.
fn quarters(x: u32, y: u32) -> Rgb<u8> {
    match (x < 48, y < 32) {
        (true, true) => Rgb([255, 0, 0]),
        (false, true) => Rgb([0, 255, 0]),
        (true, false) => Rgb([0, 0, 255]),
        (false, false) => Rgb([255, 255, 255]),
    }
}

fn quarters_image() -> DynamicImage {
    RgbImage::from_fn(96, 64, quarters).into()
}

fn jpeg_with_exif(image: &RgbImage, exif: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 95);
    encoder.add_exif_metadata(exif).expect("a short block");
    let side = |pixels: u32| u16::try_from(pixels).expect("a small picture");
    let (width, height) = (side(image.width()), side(image.height()));
    encoder.encode(image, width, height, jpeg_encoder::ColorType::Rgb).expect("encode");
    bytes
}

fn exif_block(fields: &[(Tag, Value)]) -> Vec<u8> {
    let fields: Vec<Field> = fields
        .iter()
        .map(|(tag, value)| Field { tag: *tag, ifd_num: In::PRIMARY, value: value.clone() })
        .collect();
    let mut writer = Writer::new();
    for field in &fields {
        writer.push_field(field);
    }
    let mut block = Cursor::new(Vec::new());
    writer.write(&mut block, false).expect("write");
    block.into_inner()
}

fn assert_near(found: Rgba<u8>, expected: [u8; 3], what: &str) {
    let off = found.0.iter().zip(expected).any(|(f, e)| f.abs_diff(e) > 12);
    assert!(!off, "{what}: {found:?} should be about {expected:?}");
}

fn assert_quarters(image: &DynamicImage, what: &str) {
    let rgba = image.to_rgba8();
    let (right, bottom) = (rgba.width() - 4, rgba.height() - 4);
    assert_near(*rgba.get_pixel(3, 3), [255, 0, 0], what);
    assert_near(*rgba.get_pixel(right, 3), [0, 255, 0], what);
    assert_near(*rgba.get_pixel(3, bottom), [0, 0, 255], what);
    assert_near(*rgba.get_pixel(right, bottom), [255, 255, 255], what);
}

#[test]
fn render_applies_every_orientation() {
    for orientation in 1_u16..=8 {
        let (width, height) = if orientation < 5 { (96, 64) } else { (64, 96) };
        // Where a viewer shows a coded pixel: EXIF 2.3, "orientation", row 0 and column 0.
        let coded = RgbImage::from_fn(width, height, |x, y| {
            let (right, bottom) = (width - 1 - x, height - 1 - y);
            let (shown_x, shown_y) = match orientation {
                1 => (x, y),
                2 => (right, y),
                3 => (right, bottom),
                4 => (x, bottom),
                5 => (y, x),
                6 => (bottom, x),
                7 => (bottom, right),
                _ => (y, right),
            };
            quarters(shown_x, shown_y)
        });
        let exif = exif_block(&[(Tag::Orientation, Value::Short(vec![orientation]))]);
        let bytes = jpeg_with_exif(&coded, &exif);
        let facts = inspect(&bytes, LIMITS).expect("facts");
        assert_eq!((facts.width, facts.height), (width, height), "as coded");
        assert_eq!(u16::from(facts.orientation), orientation);
        for size in [48, 1000] {
            let (one, image) = render_one(&bytes, size, PresetFormat::Auto);
            let expected = if size == 48 { (48, 32) } else { (96, 64) };
            assert_eq!((one.rendition.width, one.rendition.height), expected);
            assert_quarters(&image, &format!("orientation {orientation} at {size}"));
            assert_eq!(inspect(&one.data, LIMITS).expect("facts").orientation, 1);
        }
    }
}

#[test]
fn auto_chooses_webp_only_for_transparency() {
    let half_transparent =
        RgbaImage::from_fn(40, 40, |x, _| Rgba([200, 0, 0, if x < 20 { 0 } else { 255 }]));
    let opaque = RgbaImage::from_pixel(40, 40, Rgba([200, 0, 0, 255]));
    let (one, image) =
        render_one(&encoded(&half_transparent.into(), Codec::Png), 20, PresetFormat::Auto);
    assert_eq!(one.rendition.format, ImageFormat::Webp);
    let pixels = image.to_rgba8();
    assert!(pixels.get_pixel(2, 10).0[3] < 10 && pixels.get_pixel(17, 10).0[3] > 245);
    // Scaling uses premultiplied colors, so the transparent half leaves no black fringe.
    assert_near(*pixels.get_pixel(12, 10), [200, 0, 0], "beside the edge");
    let (one, _) = render_one(&encoded(&opaque.into(), Codec::Png), 20, PresetFormat::Auto);
    assert_eq!(one.rendition.format, ImageFormat::Jpeg);
}

#[test]
fn jpeg_puts_transparency_on_white_and_png_keeps_it() {
    let transparent = RgbaImage::from_pixel(40, 40, Rgba([0, 0, 0, 0]));
    let bytes = encoded(&transparent.into(), Codec::Png);
    let (_, image) = render_one(&bytes, 20, PresetFormat::Jpeg);
    assert_near(*image.to_rgba8().get_pixel(10, 10), [255, 255, 255], "on white");
    let (one, image) = render_one(&bytes, 20, PresetFormat::Png);
    assert_eq!(one.rendition.format, ImageFormat::Png);
    assert_eq!(image.to_rgba8().get_pixel(10, 10).0[3], 0);
}

#[test]
fn renditions_have_exact_sizes_and_are_never_enlarged() {
    let bytes = encoded(&RgbImage::new(1000, 501).into(), Codec::Png);
    let wanted = [
        ("a", 2000, PresetFormat::Auto),
        ("b", 640, PresetFormat::Webp),
        ("c", 300, PresetFormat::Png),
        ("d", 256, PresetFormat::Jpeg),
        ("e", 1, PresetFormat::Auto),
    ];
    let rendered = render(&bytes, &presets(&wanted)).expect("a valid picture").renditions;
    let mut sizes: Vec<_> = rendered
        .iter()
        .map(|one| (one.rendition.preset.as_str(), one.rendition.width, one.rendition.height))
        .collect();
    sizes.sort_unstable();
    let expected =
        [("a", 1000, 501), ("b", 640, 321), ("c", 300, 150), ("d", 256, 128), ("e", 1, 1)];
    assert_eq!(sizes, expected);
}

#[test]
fn every_format_and_depth_renders_correctly() {
    let rgb = quarters_image();
    let gray = DynamicImage::ImageLuma8(rgb.to_luma8());
    let cases = [
        ("png", encoded(&rgb, Codec::Png)),
        ("gif", encoded(&rgb, Codec::Gif)),
        ("bmp", encoded(&rgb, Codec::Bmp)),
        ("tiff", encoded(&rgb, Codec::Tiff)),
        ("webp", encoded(&rgb, Codec::WebP)),
        ("16 bit png", encoded(&rgb.to_rgb16().into(), Codec::Png)),
        ("16 bit rgba png", encoded(&rgb.to_rgba16().into(), Codec::Png)),
        ("float tiff", encoded(&rgb.to_rgb32f().into(), Codec::Tiff)),
        ("palette bmp", palette_bmp()),
    ];
    for (what, bytes) in cases {
        let (one, image) = render_one(&bytes, 48, PresetFormat::Auto);
        assert_eq!(one.rendition.format, ImageFormat::Jpeg, "{what}");
        assert_quarters(&image, what);
    }
    for (what, bytes) in [
        ("gray png", encoded(&gray, Codec::Png)),
        ("gray jpeg", encoded(&gray, Codec::Jpeg)),
        ("16 bit gray png", encoded(&gray.to_luma16().into(), Codec::Png)),
        ("gray and alpha png", encoded(&gray.to_luma_alpha8().into(), Codec::Png)),
    ] {
        for format in [PresetFormat::Auto, PresetFormat::Webp, PresetFormat::Png] {
            let image = render_one(&bytes, 48, format).1.to_rgba8();
            let red = gray.to_luma8().get_pixel(0, 0).0[0];
            assert_near(*image.get_pixel(3, 3), [red; 3], what);
            assert_near(*image.get_pixel(44, 28), [255; 3], what);
        }
    }
}

fn palette_bmp() -> Vec<u8> {
    let palette = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]];
    let indices: Vec<u8> = (0..64_u32)
        .flat_map(|y| (0..96_u32).map(move |x| u8::from(x >= 48) + 2 * u8::from(y >= 32)))
        .collect();
    let mut bytes = Vec::new();
    image::codecs::bmp::BmpEncoder::new(&mut bytes)
        .encode_with_palette(&indices, 96, 64, image::ExtendedColorType::L8, Some(&palette))
        .expect("encode");
    bytes
}

#[test]
fn inspect_reads_exif_facts() {
    let degrees =
        |parts: [u32; 3]| Value::Rational(parts.map(|num| Rational { num, denom: 1 }).to_vec());
    let text = |text: &str| Value::Ascii(vec![text.as_bytes().to_vec()]);
    let exif = exif_block(&[
        (Tag::DateTimeOriginal, text("2023:07:14 18:30:05")),
        (Tag::OffsetTimeOriginal, text("+02:00")),
        (Tag::GPSLatitude, degrees([33, 51, 36])),
        (Tag::GPSLatitudeRef, text("S")),
        (Tag::GPSLongitude, degrees([151, 12, 0])),
        (Tag::GPSLongitudeRef, text("E")),
    ]);
    let noisy = RgbImage::from_raw(99, 99, noise(3, 99 * 99 * 3)).expect("enough bytes");
    let bytes = jpeg_with_exif(&noisy, &exif);
    let facts = inspect(&bytes, LIMITS).expect("facts");
    let date = NaiveDate::from_ymd_opt(2023, 7, 14).and_then(|day| day.and_hms_opt(16, 30, 5));
    assert_eq!(facts.taken_at, date);
    assert_eq!(facts.gps, Some(Gps { latitude: -33.86, longitude: 151.2 }));
    assert_eq!((facts.format, facts.orientation), (ImageFormat::Jpeg, 1));
    // A prefix of the file is enough.
    assert!(head_suffices(&bytes[..32]));
    assert_eq!(inspect(&bytes[..bytes.len() / 2], LIMITS).expect("facts"), facts);
}

#[test]
fn invalid_exif_counts_as_absent() {
    let text = |text: &str| Value::Ascii(vec![text.as_bytes().to_vec()]);
    let invalid_position = Value::Rational(vec![Rational { num: 1, denom: 0 }; 3]);
    let invalid = [
        exif_block(&[(Tag::Orientation, Value::Short(vec![9]))]),
        exif_block(&[(Tag::Orientation, text("up"))]),
        exif_block(&[(Tag::DateTimeOriginal, text("0000:00:00 00:00:00"))]),
        exif_block(&[(Tag::DateTimeOriginal, text("2023:13:45 99:99:99"))]),
        exif_block(&[(Tag::DateTimeOriginal, text("yesterday"))]),
        exif_block(&[
            (Tag::GPSLatitude, invalid_position.clone()),
            (Tag::GPSLatitudeRef, text("")),
            (Tag::GPSLongitude, invalid_position),
            (Tag::GPSLongitudeRef, text("E")),
        ]),
        b"MM\0\x2a\xFF\xFF\xFF\xFF".to_vec(),
        Vec::new(),
    ];
    for exif in invalid.into_iter().chain((0..50).map(|seed| noise(seed, 200))) {
        let bytes = jpeg_with_exif(&quarters_image().to_rgb8(), &exif);
        let facts = inspect(&bytes, LIMITS).expect("the picture itself is valid");
        assert_eq!((facts.orientation, facts.taken_at, facts.gps), (1, None, None), "{exif:x?}");
        render_one(&bytes, 32, PresetFormat::Auto);
    }
}

/// Pseudorandom bytes, equal for equal seeds.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(count)
    .collect()
}

fn valid_pictures() -> Vec<(Codec, Vec<u8>)> {
    // Noise, so that every part of a file carries pixels.
    let image: DynamicImage =
        RgbImage::from_raw(60, 60, noise(7, 60 * 60 * 3)).expect("enough bytes").into();
    [Codec::Jpeg, Codec::Png, Codec::Gif, Codec::WebP, Codec::Tiff, Codec::Bmp]
        .map(|format| (format, encoded(&image, format)))
        .to_vec()
}

/// How inspecting and rendering the bytes fail, which must be permanent failures.
fn failures(bytes: &[u8]) -> [Option<ErrorCode>; 2] {
    let presets = presets(&[("p", 20, PresetFormat::Auto)]);
    let failures = [inspect(bytes, LIMITS).err(), render(bytes, &presets).err()];
    failures.map(|failure| {
        failure.map(|failure| {
            assert!(!failure.code.is_retryable(), "{failure}");
            failure.code
        })
    })
}

#[test]
fn truncated_pictures_fail_permanently() {
    for (format, bytes) in valid_pictures() {
        assert_eq!(failures(&bytes), [None, None], "{format:?}");
        let last = bytes.len() * 9 / 10;
        for length in (0..last).step_by(last / 97) {
            let [_, render] = failures(&bytes[..length]);
            assert!(render.is_some(), "{format:?} cut at {length} of {}", bytes.len());
        }
        // A file without its last bytes may have all pixels; a JPEG has, without its end marker.
        for length in last..bytes.len() - 2 {
            let [_, render] = failures(&bytes[..length]);
            assert!(render.is_some() || format != Codec::Jpeg, "{format:?} cut at {length}");
        }
    }
}

#[test]
fn damaged_bytes_never_panic() {
    for (_, bytes) in valid_pictures() {
        for seed in 0..200_usize {
            let mut damaged = bytes.clone();
            // Half of the rounds damage only the header.
            let span = if seed % 2 == 0 { 64.min(bytes.len()) } else { bytes.len() };
            let damage = noise(seed as u64 + 1, 16);
            for (n, pair) in damage.chunks_exact(2).enumerate() {
                let at = (usize::from(pair[0]) * 257 + n * 31 + seed * 131) % span;
                damaged[at] = pair[1];
            }
            failures(&damaged);
        }
    }
    for seed in 0..50 {
        failures(&noise(seed, 500));
    }
}

#[test]
fn headers_with_excessive_size_are_rejected_before_decoding() {
    for (format, mut bytes) in valid_pictures() {
        let big = 60_000_u32;
        match format {
            Codec::Jpeg => {
                let frame = bytes
                    .windows(2)
                    .position(|pair| pair[0] == 0xFF && matches!(pair[1], 0xC0..=0xC2));
                let at = frame.expect("a frame header") + 5;
                bytes[at..at + 4].copy_from_slice(&[0xEA, 0x60, 0xEA, 0x60]);
            }
            Codec::Png => {
                bytes[16..20].copy_from_slice(&big.to_be_bytes());
                bytes[20..24].copy_from_slice(&big.to_be_bytes());
                let sum = crc32(&bytes[12..29]);
                bytes[29..33].copy_from_slice(&sum.to_be_bytes());
            }
            Codec::Gif => bytes[6..10].copy_from_slice(&[0x60, 0xEA, 0x60, 0xEA]),
            Codec::Bmp => {
                bytes[18..22].copy_from_slice(&big.to_le_bytes());
                bytes[22..26].copy_from_slice(&big.to_le_bytes());
            }
            // VP8L has 14 bits for each side minus one: 12,000 × 12,000.
            Codec::WebP => {
                bytes[21..25].copy_from_slice(&(0x2EDF_u32 << 14 | 0x2EDF).to_le_bytes());
            }
            // TIFF's directory is at the end of the file; the damage tests cover it.
            _ => continue,
        }
        let expected = Some(ErrorCode::TooManyPixels);
        assert_eq!(failures(&bytes), [expected, expected], "{format:?}");
    }
    let wide = encoded(&RgbImage::new(300, 200).into(), Codec::Png);
    let failure = inspect(&wide, Limits { max_pixels: 59_999, ..LIMITS }).expect_err("too many");
    assert_eq!(failure.code, ErrorCode::TooManyPixels);
    assert!(failure.message.contains("60000") && failure.message.contains("59999"), "{failure}");
}

/// The CRC of PNG chunks (ISO/IEC 15948, annex D).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0xEDB8_8320 * (sum & 1)))
    })
}

#[test]
fn non_images_and_undecodable_images_have_different_codes() {
    let cases: [(&[u8], ErrorCode); 4] = [
        (b"", ErrorCode::NotAnImage),
        (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", ErrorCode::NotAnImage),
        (b"\0\0\0\x1cftypavif\0\0\0\0mif1", ErrorCode::CorruptImage),
        (b"\x89PNG\r\n\x1a\nand nothing else", ErrorCode::CorruptImage),
    ];
    for (bytes, code) in cases {
        assert_eq!(failures(bytes), [Some(code), Some(code)], "{bytes:?}");
    }
}

#[test]
fn stopped_render_ends_early() {
    let bytes = encoded(&quarters_image(), Codec::Png);
    let presets = presets(&[("p", 20, PresetFormat::Auto)]);
    let stopped = Renderer::new().expect("codecs").render(&bytes, &presets, LIMITS, &|| true);
    assert!(stopped.is_err());
}
