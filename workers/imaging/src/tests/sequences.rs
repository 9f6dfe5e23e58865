//! The outcome of a picture depends on the picture alone, whatever the same renderer was given before.

use super::*;

/// Pictures of all formats: intact, cut, damaged, and such that a codec rejects half-way.
fn pictures() -> Vec<(String, Vec<u8>)> {
    let mut pictures: Vec<(String, Vec<u8>)> = valid_pictures()
        .into_iter()
        .map(|(format, bytes)| (format!("{format:?}"), bytes))
        .collect();
    let quarters = encoded(&quarters_image(), Codec::Png);
    for format in [PresetFormat::Avif, PresetFormat::Webp, PresetFormat::Jpeg] {
        let made = render(&quarters, &presets(&[("p", 96, format)])).expect("a picture");
        pictures.push((format!("quarters as {format}"), made.renditions[0].data.to_vec()));
    }
    pictures.push((
        "animated GIF".to_owned(),
        animations::gif(40, 30, &[([250, 0, 0, 255], 100), ([0, 0, 250, 255], 100)]),
    ));
    let own_tables = {
        let mut bytes = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 30);
        encoder.set_optimized_huffman_tables(true);
        let pixels = noise(5, 96 * 64 * 3);
        encoder.encode(&pixels, 96, 64, jpeg_encoder::ColorType::Rgb).expect("encode");
        bytes
    };
    let plain = jpeg_with_exif(&quarters_image().to_rgb8(), b"");
    pictures.push(("two start markers".to_owned(), [b"\xFF\xD8", &plain[..]].concat()));
    pictures.push(("bogus table".to_owned(), {
        let table = find(&plain, &[0xFF, 0xDB]);
        let mut bogus = plain.clone();
        bogus[table + 4] = 5;
        bogus
    }));
    pictures.push(("no Huffman tables".to_owned(), without_segments(&plain, 0xC4)));
    pictures.push(("no quantization tables".to_owned(), without_segments(&plain, 0xDB)));
    pictures.push(("own tables".to_owned(), own_tables));
    pictures.push(("plain".to_owned(), plain));
    for (what, bytes) in pictures.clone() {
        pictures.push((format!("{what}, cut"), bytes[..bytes.len() * 3 / 5].to_vec()));
        let mut damaged = bytes;
        let at = damaged.len() * 2 / 3;
        for byte in &mut damaged[at..at + 20] {
            *byte = byte.wrapping_mul(3).wrapping_add(1);
        }
        pictures.push((format!("{what}, damaged"), damaged));
    }
    pictures
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).expect("a marker")
}

fn without_segments(jpeg: &[u8], marker: u8) -> Vec<u8> {
    let mut left = jpeg.to_vec();
    let scan = |bytes: &[u8]| find(bytes, &[0xFF, 0xDA]);
    while let Some(at) = left[..scan(&left)].windows(2).position(|pair| pair == [0xFF, marker]) {
        let length = usize::from(u16::from_be_bytes([left[at + 2], left[at + 3]]));
        left.drain(at..at + 2 + length);
    }
    left
}

/// The bytes of all renditions, or the failure.
fn outcome(renderer: &mut Renderer, bytes: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    let presets = presets(&[("a", 20, PresetFormat::Auto), ("b", 60, PresetFormat::Png)]);
    let made = renderer.render(bytes, &presets, LIMITS, &|| false)?;
    Ok(made.renditions.iter().map(|one| one.data.to_vec()).collect())
}

#[test]
fn pictures_have_the_same_outcome_in_any_sequence() {
    let pictures = pictures();
    let fresh: Vec<_> = pictures
        .iter()
        .map(|(_, bytes)| outcome(&mut Renderer::new().expect("a renderer"), bytes))
        .collect();
    assert!(fresh.iter().filter(|outcome| outcome.is_ok()).count() > 10);
    assert!(fresh.iter().filter(|outcome| outcome.is_err()).count() > 10);
    for seed in 0..6 {
        let mut renderer = Renderer::new().expect("a renderer");
        let mut before = "nothing";
        for byte in noise(seed + 100, 2 * pictures.len()) {
            let at = usize::from(byte) % pictures.len();
            let (what, bytes) = &pictures[at];
            assert!(outcome(&mut renderer, bytes) == fresh[at], "{what} after {before}");
            before = what;
        }
    }
}

/// What these pictures must be, whatever was before them.
#[test]
fn missing_tables_are_never_those_of_the_picture_before() {
    let pictures = pictures();
    let named = |name: &str| &pictures.iter().find(|(what, _)| what == name).expect("a picture").1;
    let mut renderer = Renderer::new().expect("a renderer");
    let plain = outcome(&mut renderer, named("plain")).expect("a picture");
    for before in ["own tables", "two start markers", "bogus table", "plain, cut"] {
        outcome(&mut renderer, named(before)).ok();
        let standard = outcome(&mut renderer, named("no Huffman tables"));
        assert_eq!(standard, Ok(plain.clone()), "after {before}");
        outcome(&mut renderer, named(before)).ok();
        let failure =
            outcome(&mut renderer, named("no quantization tables")).expect_err("no tables");
        assert_eq!(failure.code, ErrorCode::CorruptImage, "after {before}");
    }
}
