//! TIFFs that are rejected: raw files, variants without a decoder, damage.

use super::{
    tiff_builder::{Chunking, TiffBuilder},
    tiff_packing::Packing,
    *,
};

#[test]
fn raw_files_are_named() {
    let page = |fields: Vec<(u16, u16, u64)>| TiffBuilder { fields, ..TiffBuilder::rgb(24, 16) };
    let sensor = |photometric, compression| TiffBuilder {
        photometric: Some(photometric),
        fields: vec![(259, 3, compression)],
        samples: 1,
        pixel: Box::new(|_, _| vec![3]),
        ..TiffBuilder::rgb(96, 64)
    };
    let raw = |make: &'static str, child: TiffBuilder| TiffBuilder {
        make,
        others: vec![child],
        are_children: true,
        ..page(vec![(254, 4, 1)])
    };
    let cases = [
        ("DNG", page(vec![(50706, 1, 0x0401)]).build()),
        ("Nikon NEF", raw("NIKON CORPORATION", sensor(32803, 34713)).build()),
        ("Sony ARW", raw("SONY", sensor(32803, 32767)).build()),
        ("Pentax PEF", raw("PENTAX Corporation", sensor(1, 65535)).build()),
        ("camera", raw("Acme", sensor(34892, 1)).build()),
    ];
    for (kind, bytes) in cases {
        for failure in [inspect(&bytes, LIMITS).err(), render(&bytes, &presets(&[])).err()] {
            let failure = failure.expect(kind);
            assert_eq!(failure.code, ErrorCode::UnsupportedFormat, "{kind}: {failure}");
            assert!(failure.message.contains(kind), "{failure}");
        }
    }
}

#[test]
fn variants_without_decoder_are_named() {
    let with = |fields: &[(u16, u16, u64)]| TiffBuilder {
        fields: fields.to_vec(),
        ..TiffBuilder::rgb(96, 64)
    };
    let cases = [
        ("signed samples", with(&[(339, 3, 2)])),
        ("Zstandard", with(&[(259, 3, 50000)])),
        ("old-style JPEG", with(&[(259, 3, 6)])),
        ("color model 4711", with(&[(262, 3, 4711)])),
        ("other inks", TiffBuilder { photometric: Some(5), samples: 4, ..with(&[(332, 3, 2)]) }),
        ("different depths", with(&[(258, 3, 0x0006_0005)])),
    ];
    for (name, tiff) in cases {
        let failure = inspect(&tiff.build(), LIMITS).expect_err(name);
        assert_eq!(failure.code, ErrorCode::UnsupportedFormat, "{name}: {failure}");
        assert!(failure.message.contains(name), "{failure}");
    }
}

#[test]
fn missing_pixels_are_damage() {
    let packings = [Packing::None, Packing::Lzw, Packing::Deflate, Packing::PackBits];
    for packing in packings {
        for chunking in [Chunking::Strips(16), Chunking::Tiles(32, 32)] {
            let tiff = TiffBuilder { packing, chunking, cut: 9, ..TiffBuilder::rgb(96, 64) };
            let expected = [None, Some(ErrorCode::CorruptImage)];
            assert_eq!(failures(&tiff.build()), expected, "{packing:?} {chunking:?}");
        }
    }
    let jpeg = Packing::Jpeg { is_ycbcr: true, separate_tables: false };
    let tiff =
        TiffBuilder { packing: jpeg, photometric: Some(6), cut: 40, ..TiffBuilder::rgb(96, 64) };
    assert_eq!(failures(&tiff.build()), [None, Some(ErrorCode::CorruptImage)]);
}

#[test]
fn memory_of_a_tile_is_checked() {
    // One pixel, in a tile of 20,000 × 20,000.
    let tiff = TiffBuilder {
        fields: vec![(322, 4, 20_000), (323, 4, 20_000)],
        chunking: Chunking::Tiles(16, 16),
        ..TiffBuilder::rgb(1, 1)
    };
    let expected = Some(ErrorCode::TooMuchMemory);
    assert_eq!(failures(&tiff.build()), [expected, expected]);
    // Sides whose product with anything overflows.
    let most = u64::from(u32::MAX);
    let fields = vec![(256, 4, most), (257, 4, most), (278, 4, most)];
    let expected = Some(ErrorCode::SideTooLong);
    assert_eq!(failures(&TiffBuilder { fields, ..TiffBuilder::rgb(9, 9) }.build()), [expected; 2]);
}

#[test]
fn memory_of_jpegs_inside_is_checked() {
    let memory = |is_progressive| {
        let tiff = TiffBuilder {
            packing: Packing::Jpeg { is_ycbcr: true, separate_tables: false },
            photometric: Some(6),
            chunking: Chunking::Strips(64),
            is_progressive,
            ..TiffBuilder::rgb(96, 64)
        };
        let bytes = tiff.build();
        crate::tiff::header(&bytes).expect("a header").memory - bytes.len() as u64
    };
    // 16 bits for each coefficient.
    assert_eq!(memory(true) - memory(false), 2 * 3 * 96 * 64);
}

#[test]
fn jpegs_inside_that_cannot_be_decoded_are_named() {
    let jpeg = || TiffBuilder {
        packing: Packing::Jpeg { is_ycbcr: true, separate_tables: false },
        photometric: Some(6),
        ..TiffBuilder::rgb(96, 64)
    };
    let further = TiffBuilder { fields: vec![(277, 3, 4)], extra_samples: vec![0], ..jpeg() };
    let failure = inspect(&further.build(), LIMITS).expect_err("four samples");
    assert!(failure.message.contains("further samples"), "{failure}");
    let mut tables = vec![0xFF, 0xD8];
    for _ in 0..2 {
        tables.extend_from_slice(&[0xFF, 0xFE, 0xFF, 0xFF]);
        tables.resize(tables.len() + 0xFFFD, 0);
    }
    let many = TiffBuilder { jpeg_tables: tables, ..jpeg() };
    let failure = render(&many.build(), &presets(&[])).expect_err("many tables");
    assert!(failure.message.contains("64 KiB"), "{failure}");
}

#[test]
fn damaged_tiffs_never_panic() {
    let builders = [
        TiffBuilder { packing: Packing::Lzw, predictor: 2, ..TiffBuilder::rgb(30, 20) },
        TiffBuilder {
            is_planar: true,
            chunking: Chunking::Tiles(16, 16),
            ..TiffBuilder::rgb(30, 20)
        },
        TiffBuilder { is_big_tiff: true, bits: 12, ..TiffBuilder::rgb(30, 20) },
        TiffBuilder { packing: Packing::Lzw, ..TiffBuilder::ycbcr([2, 2]) },
        TiffBuilder {
            packing: Packing::Group4,
            bits: 1,
            samples: 1,
            photometric: Some(0),
            pixel: Box::new(|x, y| vec![u64::from((x + y) % 3 == 0)]),
            ..TiffBuilder::rgb(40, 20)
        },
    ];
    for (round, builder) in builders.iter().enumerate() {
        let bytes = builder.build();
        for seed in 0..400_usize {
            let mut damaged = bytes.clone();
            for pair in noise((seed * 7 + round) as u64, 6).chunks_exact(2) {
                // The directory is behind the pixels.
                let span = if seed % 2 == 0 { 300.min(bytes.len()) } else { bytes.len() };
                let at = bytes.len() - 1 - (usize::from(pair[0]) * 257 + seed * 31) % span;
                damaged[at] = pair[1];
            }
            failures(&damaged);
        }
    }
}
