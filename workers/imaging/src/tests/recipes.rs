//! The options of presets.

use exif::Reader;
use safelight_domain::{Fit, Focus, Formats};

use super::*;

fn one(bytes: &[u8], preset: Preset) -> (Rendered, DynamicImage) {
    let presets = [("p".to_owned(), preset)].into();
    let mut rendered = render(bytes, &presets).expect("a valid picture").renditions;
    let one = rendered.remove(0);
    let image = image::load_from_memory(&one.data).expect("a readable rendition");
    (one, image)
}

/// 400 × 100 pixels, gray, with a colorful pattern at the right end.
fn gray_with_pattern_at_right() -> RgbImage {
    RgbImage::from_fn(400, 100, |x, y| match (x, (x / 4 + y / 4) % 2) {
        (320..380, 0) => Rgb([230, 40, 20]),
        (320..380, _) => Rgb([20, 40, 230]),
        _ => Rgb([128; 3]),
    })
}

#[test]
fn cover_fills_box_and_respects_focus() {
    let picture = DynamicImage::from(gray_with_pattern_at_right());
    for format in [Codec::Png, Codec::Jpeg] {
        let bytes = encoded(&picture, format);
        let cover = Preset {
            fit: Fit::Cover,
            formats: PresetFormat::Png.into(),
            ..Preset::new(Size::square(50))
        };
        let (made, middle) = one(&bytes, cover.clone());
        assert_eq!((made.rendition.width, made.rendition.height), (50, 50));
        assert!(middle.to_rgb8().pixels().all(|pixel| pixel.0.iter().all(|s| s.abs_diff(128) < 6)));
        let (_, attention) = one(&bytes, Preset { focus: Focus::Attention, ..cover.clone() });
        let colorful = attention.to_rgb8().pixels().filter(|pixel| pixel.0[1] < 90).count();
        assert!(colorful > 700, "{format:?}: {colorful} of 2500 pixels show the pattern");
        // A box that is not square, and a box that is larger than the picture.
        let wide = Preset { size: Size { width: 100, height: 30 }, ..cover.clone() };
        assert_eq!((one(&bytes, wide).1.width(), 100), (100, 100));
        let large = Preset { size: Size { width: 1200, height: 600 }, ..cover };
        let (_, large) = one(&bytes, large);
        assert_eq!((large.width(), large.height()), (200, 100));
    }
}

#[test]
fn cover_crops_rotated_picture_upright() {
    // Coded in landscape and shown in portrait: the pattern is at the bottom.
    let exif = exif_block(&[(Tag::Orientation, Value::Short(vec![6]))]);
    let bytes = jpeg_with_exif(&gray_with_pattern_at_right(), &exif);
    let preset = Preset {
        fit: Fit::Cover,
        focus: Focus::Attention,
        formats: PresetFormat::Png.into(),
        ..Preset::new(Size { width: 40, height: 80 })
    };
    let (made, image) = one(&bytes, preset);
    assert_eq!((made.rendition.width, made.rendition.height), (40, 80));
    let colorful = image.to_rgb8().pixels().filter(|pixel| pixel.0[1] < 90).count();
    assert!(colorful > 500, "{colorful}");
}

#[test]
fn sharpening_makes_edges_steeper_in_every_format() {
    let edge = RgbImage::from_fn(200, 100, |x, _| [if x < 100 { 90 } else { 160 }; 3].into());
    for codec in [Codec::Png, Codec::Jpeg] {
        let bytes = encoded(&edge.clone().into(), codec);
        let steepest = |sharpen| {
            let preset = Preset { sharpen, quality: 95, ..Preset::new(Size::square(100)) };
            let image = one(&bytes, preset).1.to_luma8();
            let row: Vec<u8> = (0..100).map(|x| image.get_pixel(x, 25).0[0]).collect();
            row.iter().max().expect("a row") - row.iter().min().expect("a row")
        };
        assert!(steepest(100) > steepest(0) + 8, "{codec:?}");
    }
}

#[test]
fn avif_is_written_and_read() {
    let half_transparent =
        RgbaImage::from_fn(60, 40, |x, _| Rgba([200, 30, 30, if x < 30 { 0 } else { 255 }]));
    for (what, picture) in [("opaque", quarters_image()), ("transparent", half_transparent.into())]
    {
        let preset = Preset {
            formats: PresetFormat::Avif.into(),
            quality: 90,
            ..Preset::new(Size::square(500))
        };
        let presets = [("p".to_owned(), preset)].into();
        let avif =
            render(&encoded(&picture, Codec::Png), &presets).expect("a valid picture").renditions;
        assert_eq!(avif[0].rendition.format, ImageFormat::Avif);
        let facts = inspect(&avif[0].data, LIMITS).expect("facts");
        assert_eq!((facts.width, facts.height), (picture.width(), picture.height()));
        let (back, image) = render_one(&avif[0].data, 500, PresetFormat::Auto);
        if what == "opaque" {
            assert_eq!(back.rendition.format, ImageFormat::Jpeg);
            assert_quarters(&image, what);
        } else {
            assert_eq!(back.rendition.format, ImageFormat::Webp);
            assert!(image.to_rgba8().get_pixel(5, 20).0[3] < 10);
            assert_near(*image.to_rgba8().get_pixel(50, 20), [200, 30, 30], what);
        }
    }
}

#[test]
fn renditions_drop_metadata_except_requested_copyright() {
    let degrees = [33, 51, 36].map(|num| Rational { num, denom: 1 });
    let text = |text: &str| Value::Ascii(vec![text.as_bytes().to_vec()]);
    let exif = exif_block(&[
        (Tag::Copyright, text("(c) Ada Example")),
        (Tag::Artist, text("Ada")),
        (Tag::Model, text("Spycam 3000")),
        (Tag::GPSLatitude, Value::Rational(degrees.to_vec())),
        (Tag::GPSLatitudeRef, text("N")),
        (Tag::GPSLongitude, Value::Rational(degrees.to_vec())),
        (Tag::GPSLongitudeRef, text("E")),
        (Tag::Orientation, Value::Short(vec![6])),
    ]);
    let bytes = jpeg_with_exif(&quarters_image().to_rgb8(), &exif);
    assert!(inspect(&bytes, LIMITS).expect("facts").gps.is_some());
    for format in PresetFormat::ALL {
        for keep_copyright in [false, true] {
            let preset = Preset {
                formats: (*format).into(),
                keep_copyright,
                ..Preset::new(Size::square(40))
            };
            let presets = [("p".to_owned(), preset)].into();
            let made = render(&bytes, &presets).expect("a valid picture").renditions.remove(0);
            let metadata = Reader::new().read_from_container(&mut Cursor::new(&made.data));
            let mut tags: Vec<_> =
                metadata.iter().flat_map(exif::Exif::fields).map(|field| field.tag).collect();
            tags.sort_by_key(|tag| tag.number());
            let expected = if keep_copyright { vec![Tag::Artist, Tag::Copyright] } else { vec![] };
            assert_eq!(tags, expected, "{format}");
            assert!(!made.data.windows(6).any(|word| word == b"Spycam"), "{format}");
        }
    }
}

#[test]
fn presets_with_equal_results_share_bytes() {
    let bytes = encoded(&quarters_image(), Codec::Jpeg);
    let wanted = [
        ("a", 2000, PresetFormat::Auto),
        ("b", 1000, PresetFormat::Auto),
        ("c", 20, PresetFormat::Auto),
    ];
    let rendered = render(&bytes, &presets(&wanted)).expect("a valid picture").renditions;
    let data = |name: &str| {
        let one = rendered.iter().find(|one| one.rendition.preset == name).expect(name);
        (one.data.as_ptr(), one.rendition.fingerprint.clone())
    };
    assert_eq!(data("a").0, data("b").0);
    assert_ne!(data("a").1, data("b").1);
    assert_ne!(data("a").0, data("c").0);
}

#[test]
fn preset_makes_each_of_its_formats_once() {
    let list = |names: &[PresetFormat]| Formats::new(names.to_vec()).expect("a list");
    let opaque = encoded(&quarters_image(), Codec::Jpeg);
    let transparent: DynamicImage =
        RgbaImage::from_pixel(40, 40, image::Rgba([9, 99, 200, 90])).into();
    let transparent = encoded(&transparent, Codec::Png);
    let animated =
        super::animations::gif(40, 40, &[([255, 0, 0, 255], 100), ([0, 0, 255, 255], 100)]);
    let (auto, webp, avif) = (PresetFormat::Auto, PresetFormat::Webp, PresetFormat::Avif);
    let formats = list(&[auto, webp, avif]);
    for (bytes, expected) in [
        (&opaque, &[ImageFormat::Jpeg, ImageFormat::Webp, ImageFormat::Avif][..]),
        (&transparent, &[ImageFormat::Webp, ImageFormat::Avif]),
        (&animated, &[ImageFormat::Avif, ImageFormat::Webp]),
    ] {
        let several = Preset { formats: formats.clone(), ..Preset::new(Size::square(20)) };
        let presets = [("a".to_owned(), several.clone()), ("b".to_owned(), several)].into();
        let made = render(bytes, &presets).expect("a valid picture").renditions;
        for name in ["a", "b"] {
            let of_preset: Vec<_> =
                made.iter().filter(|one| one.rendition.preset == name).collect();
            let found: Vec<_> = of_preset.iter().map(|one| one.rendition.format).collect();
            assert_eq!(found, expected);
            for one in of_preset {
                assert_eq!(ImageFormat::sniff(&one.data), Some(one.rendition.format));
                assert_eq!(one.rendition.fingerprint, presets[name].fingerprint());
            }
        }
    }
    // AVIF keeps all color samples. A JPEG of the same preset must still be subsampled.
    let several = Preset { formats: list(&[auto, avif]), ..Preset::new(Size::square(20)) };
    let with_avif =
        render(&opaque, &[("p".to_owned(), several)].into()).expect("a valid picture").renditions;
    let (alone, _) = render_one(&opaque, 20, auto);
    let sampling = |data: &[u8]| {
        let header = turbojpeg::read_header(data).expect("a JPEG");
        (header.width, header.height, header.subsamp)
    };
    assert_eq!(sampling(&with_avif[0].data), sampling(&alone.data));
}

#[test]
fn placeholder_is_upright_and_has_colors_of_picture() {
    // Shown in portrait: red above, blue below.
    let landscape =
        RgbImage::from_fn(
            64,
            32,
            |x, _| {
                if x < 32 { Rgb([220, 20, 20]) } else { Rgb([20, 20, 220]) }
            },
        );
    let exif = exif_block(&[(Tag::Orientation, Value::Short(vec![6]))]);
    let bytes = jpeg_with_exif(&landscape, &exif);
    let made = render(&bytes, &presets(&[("p", 20, PresetFormat::Auto)])).expect("a valid picture");
    let hash = &made.placeholder.thumbhash;
    let (width, height, rgba) = thumbhash::thumb_hash_to_rgba(hash).expect("a hash");
    assert!(height > width, "{width} × {height}");
    let pixel = |y: usize| {
        let at = 4 * (y * width + width / 2);
        (rgba[at], rgba[at + 2])
    };
    let (above, below) = (pixel(height / 8), pixel(height * 7 / 8));
    assert!(above.0 > above.1 && below.1 > below.0, "{above:?} {below:?}");
    let [red, green, blue] = made.placeholder.dominant_color;
    assert!(red.max(blue) > 150 && red.min(blue) < 90 && green < 90);
}
