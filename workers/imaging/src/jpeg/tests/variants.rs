//! Rare variants: missing tables, lossless, arithmetic and hierarchical coding, inks without Adobe's marker.

use super::*;

/// A frame of a camera's video has no Huffman tables: the standard's are meant.
#[test]
fn missing_huffman_tables_are_the_standards() {
    let plain = encoded(|_| ());
    assert_eq!(decoded(&without(&plain, DHT)), decoded(&plain));
    assert_damaged(&without(&plain, DQT), "no quantization tables");
}

#[test]
fn lossless_pictures_keep_every_value() {
    let lossless = compressed(|it| it.set_lossless(true));
    assert_eq!(decoded(&lossless).expect("a lossless picture"), picture());
    assert_eq!(decoded_at(&lossless, 8.0).expect("never scaled"), picture());
    let half = segment(&lossless, SOS).end + 3000;
    assert_damaged(&spliced(&lossless, half..lossless.len() - 2, &[]), "half a lossless picture");
    let gray: Vec<u8> = picture().chunks(3).map(|pixel| pixel[0]).collect();
    let mut compressor = Compressor::new().expect("a compressor");
    compressor.set_lossless(true).expect("an option");
    let (width, height) = (usize::from(WIDTH), usize::from(HEIGHT));
    let image = Image { pixels: &gray[..], width, height, pitch: width, format: PixelFormat::GRAY };
    let lossless = compressor.compress_to_vec(image).expect("compress");
    assert_eq!(decoded(&lossless).expect("a lossless picture"), gray);
}

#[test]
fn arithmetic_coding_is_decoded_also_with_oddities() {
    let arithmetic = compressed(|it| {
        it.set_quality(85)?;
        it.set_subsamp(Subsamp::Sub2x2)?;
        it.set_arithmetic(true)
    });
    let pixels = decoded(&arithmetic).expect("an intact picture");
    let stray = inserted(&arithmetic, segment(&arithmetic, DQT).start, b"stray");
    assert_eq!(decoded(&stray).expect("an odd picture"), pixels);
    let at = segment(&arithmetic, SOS).end;
    let samsung = spliced(&arithmetic, at - 3..at, &[0; 3]);
    assert_eq!(decoded(&samsung).expect("an odd picture"), pixels);
    // Its decoder continues with zeros where data ends, so only the end marker tells that nothing is missing.
    assert_damaged(&arithmetic[..arithmetic.len() - 2], "no end marker");
    assert_damaged(&stray[..stray.len() / 2], "half an arithmetic picture");
}

#[test]
fn unsupported_variants_are_not_called_damaged() {
    let plain = encoded(|_| ());
    let frame = segment(&plain, 0xC0).start;
    let read = |bytes: &[u8]| {
        let header = Header::read(bytes).expect("a header");
        header.unsupported().expect("unsupported")
    };
    for (marker, name) in
        [(0xC5, "hierarchical"), (0xCB, "arithmetic"), (0xCE, "hierarchical"), (0xF7, "JPEG-LS")]
    {
        let variant = spliced(&plain, frame..frame + 2, &[0xFF, marker]);
        assert!(read(&variant).contains(name), "{marker:x}: {}", read(&variant));
    }
    let deep = spliced(&plain, frame + 4..frame + 5, &[12]);
    assert!(read(&deep).contains("12 bits"));
    let late = spliced(&plain, frame + 5..frame + 7, &[0, 0]);
    assert!(read(&late).contains("DNL"));
}

/// Tools that remove metadata remove Adobe's marker as well; the inks stay inverted.
#[test]
fn inks_are_inverted_with_and_without_adobes_marker() {
    let inks: Vec<u8> = picture().chunks(3).flat_map(|rgb| [rgb[0], rgb[1], rgb[2], 40]).collect();
    let mut bytes = Vec::new();
    let encoder = Encoder::new(&mut bytes, 85);
    encoder.encode(&inks, WIDTH, HEIGHT, ColorType::Cmyk).expect("encode");
    let stripped = without(&bytes, super::super::markers::APP14);
    assert!(stripped.len() < bytes.len());
    assert_eq!(decoded(&stripped), decoded(&bytes));
}

#[test]
fn component_without_a_scan_is_missing_data() {
    // This encoder gives each component a scan of its own.
    let plain = encoded(|it| it.set_optimized_huffman_tables(true));
    let scans = scans(&plain);
    assert_eq!(scans.len(), 3);
    for scan in scans {
        assert_damaged(&spliced(&plain, scan, &[]), "a component without a scan");
    }
}

#[test]
fn second_start_marker_is_an_error() {
    let plain = encoded(|_| ());
    assert!(plain.ends_with(&[0xFF, EOI]));
    assert_damaged(&spliced(&plain, 0..0, &[0xFF, SOI]), "two start markers");
}

/// Phones take 200 million pixels. What counts is memory: coefficients are kept if there are several scans.
#[test]
fn memory_decides_about_pictures_of_large_phones() {
    let limit: u64 = 1 << 30;
    for (subsamp, progressive, fits) in [
        (Subsamp::Sub2x2, false, true),
        (Subsamp::None, false, true),
        (Subsamp::Sub2x2, true, true),
        (Subsamp::None, true, false),
    ] {
        let mut large = compressed(|it| {
            it.set_quality(85)?;
            it.set_subsamp(subsamp)?;
            it.set_progressive(progressive)
        });
        let frame = segment(&large, if progressive { 0xC2 } else { 0xC0 }).start;
        let sides = [12_240_u16.to_be_bytes(), 16_320_u16.to_be_bytes()].concat();
        large[frame + 5..frame + 9].copy_from_slice(&sides);
        let header = Header::read(&large).expect("a header");
        let memory = decode_memory(&header, 0);
        assert_eq!(memory < limit, fits, "{subsamp:?}, progressive {progressive}: {memory}");
    }
}
