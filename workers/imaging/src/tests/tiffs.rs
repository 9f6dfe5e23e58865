//! TIFF in its variants, made here.

use moxcms::ColorProfile;

use super::{
    tiff_builder::{Chunking, TiffBuilder, quarter_samples},
    tiff_packing::Packing,
    *,
};

fn assert_shows_quarters(tiff: &TiffBuilder, what: &str) {
    let bytes = tiff.build();
    let facts = inspect(&bytes, LIMITS).unwrap_or_else(|why| panic!("{what}: {why}"));
    assert_eq!((facts.width, facts.height), (tiff.width, tiff.height), "{what}");
    let presets = presets(&[("p", 1000, PresetFormat::Png)]);
    let rendered = render(&bytes, &presets).unwrap_or_else(|why| panic!("{what}: {why}"));
    let image = image::load_from_memory(&rendered.renditions[0].data).expect("a PNG");
    assert_quarters(&image, what);
    // Just beside the edges, so that a shift by one pixel is noticed.
    let rgba = image.to_rgba8();
    let (x, y) = (tiff.width / 2, tiff.height / 2);
    assert_near(*rgba.get_pixel(x - 1, y - 1), [255, 0, 0], what);
    assert_near(*rgba.get_pixel(x, y - 1), [0, 255, 0], what);
    assert_near(*rgba.get_pixel(x - 1, y), [0, 0, 255], what);
    assert_near(*rgba.get_pixel(x, y), [255, 255, 255], what);
}

#[test]
fn every_layout_of_pixels_is_decoded() {
    let chunkings = [
        Chunking::Strips(70),
        Chunking::Strips(16),
        Chunking::Strips(1),
        Chunking::Tiles(32, 16),
        Chunking::Tiles(112, 80),
    ];
    let packings =
        [Packing::None, Packing::Lzw, Packing::OldLzw, Packing::Deflate, Packing::PackBits];
    let mut round = 0;
    for chunking in chunkings {
        for packing in packings {
            for is_planar in [false, true] {
                for low_bit_first in [false, true] {
                    round += 1;
                    let tiff = TiffBuilder {
                        big_endian: round % 2 == 0,
                        is_big_tiff: round % 3 == 0,
                        chunking,
                        packing,
                        is_planar,
                        low_bit_first,
                        ..TiffBuilder::rgb(100, 70)
                    };
                    let what =
                        format!("{chunking:?} {packing:?} planar {is_planar} {low_bit_first}");
                    assert_shows_quarters(&tiff, &what);
                }
            }
        }
    }
}

#[test]
fn every_depth_is_decoded() {
    for bits in [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 24, 32, 64] {
        for big_endian in [false, true] {
            for is_planar in [false, true] {
                let tiff = TiffBuilder { big_endian, bits, is_planar, ..TiffBuilder::rgb(101, 71) };
                assert_shows_quarters(&tiff, &format!("{bits} bits, {big_endian} {is_planar}"));
            }
        }
    }
    for bits in [16, 32, 64] {
        for predictor in [1, 2, 3] {
            for big_endian in [false, true] {
                let packing = Packing::Deflate;
                let tiff = TiffBuilder {
                    big_endian,
                    bits,
                    predictor,
                    packing,
                    ..TiffBuilder::float(99, 70)
                };
                assert_shows_quarters(&tiff, &format!("float {bits}, predictor {predictor}"));
            }
        }
    }
    for bits in [8, 16, 32, 64] {
        for is_planar in [false, true] {
            for (big_endian, chunking) in
                [(false, Chunking::Tiles(16, 16)), (true, Chunking::Strips(7))]
            {
                let packing = Packing::Lzw;
                let tiff = TiffBuilder {
                    bits,
                    predictor: 2,
                    big_endian,
                    packing,
                    is_planar,
                    chunking,
                    ..TiffBuilder::rgb(99, 70)
                };
                assert_shows_quarters(&tiff, &format!("predictor, {bits} {is_planar}"));
            }
        }
    }
}

#[test]
fn odd_fields_are_tolerated() {
    let rgb = || TiffBuilder::rgb(96, 64);
    let with = |fields: &[(u16, u16, u64)]| TiffBuilder { fields: fields.to_vec(), ..rgb() };
    let cases = [
        ("undefined sample format", with(&[(339, 3, 4)])),
        ("unknown sample format", with(&[(339, 3, 77)])),
        ("predictor without compression", with(&[(317, 3, 2)])),
        ("a private field", with(&[(65_000, 4, u64::from(u32::MAX))])),
        ("a field of unknown kind", with(&[(65_001, 99, 5)])),
        ("no strip height", TiffBuilder { chunking: Chunking::Strips(0), ..rgb() }),
        ("no byte counts", TiffBuilder { has_lengths: false, ..rgb() }),
        ("no color model", TiffBuilder { photometric: None, ..rgb() }),
    ];
    for (what, tiff) in cases {
        assert_shows_quarters(&tiff, what);
    }
}

#[test]
fn gray_in_every_depth_and_sense() {
    for bits in [1, 2, 4, 7, 8, 12, 16, 32] {
        for photometric in [0, 1] {
            let max = u64::MAX >> (64 - bits);
            let tiff = TiffBuilder {
                bits,
                photometric: Some(photometric),
                samples: 1,
                pixel: Box::new(move |x, _| vec![if x < 20 { 0 } else { max }]),
                ..TiffBuilder::rgb(41, 30)
            };
            let image = render_one(&tiff.build(), 100, PresetFormat::Png).1.to_rgb8();
            let [first, last] = if photometric == 0 { [255, 0] } else { [0, 255] };
            let what = format!("{bits} bits, {photometric}");
            assert_eq!(image.get_pixel(19, 5).0, [first; 3], "{what}");
            assert_eq!(image.get_pixel(20, 5).0, [last; 3], "{what}");
            assert_eq!(image.get_pixel(40, 29).0, [last; 3], "{what}");
        }
    }
}

#[test]
fn palette_is_looked_up() {
    for (bits, is_wide) in [(1, true), (2, true), (4, true), (8, true), (8, false), (16, true)] {
        let count = 1_usize << bits;
        let colors = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]];
        let level = |value: u64| if is_wide { value * 257 } else { value };
        let map = (0..3 * count).map(|at| {
            let color = colors[at % count % 4];
            level(color[at / count])
        });
        let tiff = TiffBuilder {
            bits,
            photometric: Some(3),
            samples: 1,
            color_map: map.collect(),
            pixel: Box::new(|x, y| vec![u64::from(x >= 48) + 2 * u64::from(y >= 32)]),
            ..TiffBuilder::rgb(96, 64)
        };
        let what = format!("{bits} bits");
        if bits > 1 {
            assert_shows_quarters(&tiff, &what);
        } else {
            let image = render_one(&tiff.build(), 96, PresetFormat::Png).1.to_rgb8();
            assert_eq!(image.get_pixel(3, 3).0, [255, 0, 0]);
            assert_eq!(image.get_pixel(90, 3).0, [0, 255, 0]);
        }
    }
}

#[test]
fn alpha_is_associated_separate_or_none() {
    let half = |[red, green, blue]: [u64; 3], alpha: u64| vec![red, green, blue, alpha];
    // (200, 100, 50) at half opacity: as it is, and multiplied.
    let cases = [
        (Some(2), half([200, 100, 50], 128), [200, 100, 50, 128]),
        (None, half([200, 100, 50], 128), [200, 100, 50, 128]),
        (Some(1), half([100, 50, 25], 128), [200, 100, 50, 128]),
        // Unspecified: not transparency.
        (Some(0), half([200, 100, 50], 128), [200, 100, 50, 255]),
    ];
    for (extra, pixel, expected) in cases {
        for bits in [8, 16] {
            for is_planar in [false, true] {
                let pixel: Vec<u64> = pixel
                    .iter()
                    .map(|value| if bits == 8 { *value } else { value * 257 })
                    .collect();
                let tiff = TiffBuilder {
                    bits,
                    is_planar,
                    samples: 4,
                    extra_samples: extra.into_iter().collect(),
                    pixel: Box::new(move |_, _| pixel.clone()),
                    ..TiffBuilder::rgb(24, 16)
                };
                let image = render_one(&tiff.build(), 24, PresetFormat::Png).1.to_rgba8();
                let found = image.get_pixel(5, 5).0;
                let near = found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 2);
                assert!(near, "{extra:?} {bits} {is_planar}: {found:?}");
            }
        }
    }
    // Gray with alpha, and one sample that is neither.
    let gray = TiffBuilder {
        samples: 3,
        photometric: Some(1),
        extra_samples: vec![0, 2],
        pixel: Box::new(|_, _| vec![77, 9, 128]),
        ..TiffBuilder::rgb(24, 16)
    };
    let image = render_one(&gray.build(), 24, PresetFormat::Png).1.to_rgba8();
    assert_eq!(image.get_pixel(5, 5).0, [77, 77, 77, 128]);
}

#[test]
fn profiles_of_any_length_count() {
    let profile = ColorProfile::new_display_p3().encode().expect("a profile");
    let mut long = profile.clone();
    long.resize(300_000, 0);
    for icc in [profile, long] {
        let tiff = TiffBuilder {
            icc,
            pixel: Box::new(|_, _| vec![200, 100, 100]),
            ..TiffBuilder::rgb(8, 8)
        };
        let found = *render_one(&tiff.build(), 8, PresetFormat::Png).1.to_rgb8().get_pixel(3, 3);
        let near = found.0.iter().zip([214, 95, 97]).all(|(a, b)| a.abs_diff(b) <= 3);
        assert!(near, "{found:?}");
    }
}

#[test]
fn inks_become_colors() {
    for (is_planar, chunking) in [
        (false, Chunking::Strips(9)),
        (true, Chunking::Strips(64)),
        (true, Chunking::Tiles(32, 32)),
    ] {
        for bits in [8, 16] {
            let max = u64::MAX >> (64 - bits);
            let tiff = TiffBuilder {
                bits,
                is_planar,
                chunking,
                samples: 4,
                photometric: Some(5),
                pixel: Box::new(move |x, y| {
                    let mut inks: Vec<u64> = quarters(x, y)
                        .0
                        .iter()
                        .map(|level| if *level > 0 { 0 } else { max })
                        .collect();
                    inks.push(0);
                    inks
                }),
                ..TiffBuilder::rgb(96, 64)
            };
            assert_shows_quarters(&tiff, &format!("CMYK {bits} {is_planar} {chunking:?}"));
        }
    }
}

#[test]
fn luma_and_chroma_in_blocks() {
    for subsampling in [[1, 1], [2, 1], [1, 2], [2, 2], [4, 2], [4, 4]] {
        for packing in [Packing::None, Packing::Lzw] {
            for chunking in [Chunking::Strips(16), Chunking::Tiles(32, 16)] {
                let tiff = TiffBuilder { packing, chunking, ..TiffBuilder::ycbcr(subsampling) };
                assert_shows_quarters(&tiff, &format!("{subsampling:?} {packing:?} {chunking:?}"));
            }
        }
    }
}

#[test]
fn lab_becomes_srgb() {
    let lab = |x: u32, y: u32| match (x < 48, y < 32) {
        (true, true) => [138, 81, 70],
        (false, true) => [224, -79, 81],
        (true, false) => [75, 68, -112],
        (false, false) => [255, 0, 0],
    };
    for (photometric, offset) in [(8, 0), (9, 128)] {
        let tiff = TiffBuilder {
            photometric: Some(photometric),
            pixel: Box::new(move |x, y| {
                let [lightness, a, b] = lab(x, y);
                let chroma = |value: i64| ((value + offset) & 0xFF) as u64;
                vec![lightness as u64, chroma(a), chroma(b)]
            }),
            ..TiffBuilder::rgb(96, 64)
        };
        assert_shows_quarters(&tiff, &format!("Lab {photometric}"));
    }
    // The same color in 8 and in 16 bits, whose lightness ICC profiles scale otherwise.
    let shown = |photometric, bits, sample: [u64; 3]| {
        let pixel = Box::new(move |_, _| sample.to_vec());
        let photometric = Some(photometric);
        let tiff = TiffBuilder { bits, photometric, pixel, ..TiffBuilder::rgb(8, 8) };
        render_one(&tiff.build(), 8, PresetFormat::Png).1.to_rgb8().get_pixel(3, 3).0
    };
    assert_eq!(shown(8, 16, [0x8080, 0xC000, 0x2000]), shown(8, 8, [0x80, 0xC0, 0x20]));
    assert_eq!(shown(9, 16, [0x8000, 0x4000, 0xA000]), shown(9, 8, [0x80, 0x40, 0xA0]));
    assert_eq!(shown(9, 16, [0xFF00, 0x8000, 0x8000]), [255; 3]);
}

#[test]
fn jpeg_inside_is_decoded_with_its_tables() {
    for is_ycbcr in [true, false] {
        for chunking in [Chunking::Strips(16), Chunking::Strips(48), Chunking::Tiles(32, 32)] {
            for separate_tables in [true, false] {
                let tiff = TiffBuilder {
                    packing: Packing::Jpeg { is_ycbcr, separate_tables },
                    photometric: Some(if is_ycbcr { 6 } else { 2 }),
                    chunking,
                    fields: vec![(530, 3, 0x0002_0002)],
                    ..TiffBuilder::rgb(96, 64)
                };
                let what = format!("JPEG, {is_ycbcr}, {chunking:?}, tables {separate_tables}");
                // Chroma is shared between pixels, so edges are blurred.
                assert_quarters(&render_one(&tiff.build(), 96, PresetFormat::Png).1, &what);
            }
        }
    }
}

#[test]
fn fax_is_decoded_in_either_bit_order() {
    for low_bit_first in [false, true] {
        for photometric in [0, 1] {
            let tiff = TiffBuilder {
                bits: 1,
                samples: 1,
                photometric: Some(photometric),
                packing: Packing::Group4,
                low_bit_first,
                chunking: Chunking::Strips(11),
                pixel: Box::new(|x, y| vec![u64::from((x / 7 + y / 5) % 3 == 0)]),
                ..TiffBuilder::rgb(203, 60)
            };
            let image = render_one(&tiff.build(), 203, PresetFormat::Png).1.to_rgb8();
            for (x, y, pixel) in image.enumerate_pixels() {
                let is_set = (x / 7 + y / 5) % 3 == 0;
                let level = if is_set == (photometric == 1) { 255 } else { 0 };
                assert_eq!(pixel.0, [level; 3], "{x}, {y}");
            }
        }
    }
}

#[test]
fn main_page_is_shown() {
    let thumbnail = || TiffBuilder {
        fields: vec![(254, 4, 1)],
        pixel: Box::new(|_, _| vec![9, 9, 9]),
        ..TiffBuilder::rgb(24, 16)
    };
    let main = || TiffBuilder::rgb(96, 64);
    let pages = |first: TiffBuilder, others: Vec<TiffBuilder>, are_children: bool| {
        TiffBuilder { others, are_children, ..first }.build()
    };
    for bytes in [
        pages(thumbnail(), vec![main()], false),
        pages(thumbnail(), vec![main()], true),
        pages(main(), vec![thumbnail()], false),
        pages(main(), vec![thumbnail()], true),
    ] {
        let facts = inspect(&bytes, LIMITS).expect("facts");
        assert_eq!((facts.width, facts.height), (96, 64));
        assert_quarters(&render_one(&bytes, 96, PresetFormat::Png).1, "the main page");
    }
}

#[test]
fn orientation_of_the_page_counts() {
    let coded = |x: u32, y: u32| quarter_samples(y, 63 - x);
    let tiff = TiffBuilder {
        fields: vec![(274, 3, 6)],
        is_big_tiff: true,
        pixel: Box::new(coded),
        ..TiffBuilder::rgb(64, 96)
    };
    let bytes = tiff.build();
    assert_eq!(inspect(&bytes, LIMITS).expect("facts").orientation, 6);
    render_one(&bytes, 96, PresetFormat::Png);
}
