//! GIF, BMP, PNG and WebP whose containers are odd, but which browsers show. Made here, byte by byte.

use image_webp::WebPDecoder;
use weezl::{BitOrder, encode::Encoder as LzwEncoder};

use super::*;

pub(super) const PALETTE: [[u8; 3]; 4] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]];

/// The color index of a pixel of the quarters.
pub(super) fn index(x: u32, y: u32) -> u8 {
    u8::from(x >= 48) + 2 * u8::from(y >= 32)
}

pub(super) fn assert_quarters_of(bytes: &[u8], what: &str) {
    let facts = inspect(bytes, LIMITS).unwrap_or_else(|why| panic!("{what}: {why}"));
    assert_eq!((facts.width, facts.height), (96, 64), "{what}");
    let image = render_one(bytes, 96, PresetFormat::Png).1;
    assert!(!image.color().has_alpha(), "{what}");
    assert_quarters(&image, what);
    assert_near(*image.to_rgba8().get_pixel(47, 31), [255, 0, 0], what);
    assert_near(*image.to_rgba8().get_pixel(48, 32), [255, 255, 255], what);
}

// GIF

fn gif_head(width: u16, height: u16, has_colors: bool) -> Vec<u8> {
    let mut bytes = b"GIF89a".to_vec();
    bytes.extend_from_slice(&width.to_le_bytes());
    bytes.extend_from_slice(&height.to_le_bytes());
    bytes.extend_from_slice(&[if has_colors { 0x81 } else { 0 }, 0, 0]);
    if has_colors {
        bytes.extend(PALETTE.concat());
    }
    bytes
}

fn gif_frame(place: [u16; 4], duration: u16, indices: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x21, 0xF9, 4, 0];
    bytes.extend_from_slice(&duration.to_le_bytes());
    bytes.extend_from_slice(&[0, 0, 0x2C]);
    bytes.extend(place.iter().flat_map(|side| side.to_le_bytes()));
    bytes.extend_from_slice(&[0, 2]);
    for block in LzwEncoder::new(BitOrder::Lsb, 2).encode(indices).expect("LZW").chunks(255) {
        bytes.push(block.len() as u8);
        bytes.extend_from_slice(block);
    }
    bytes.push(0);
    bytes
}

fn quarters_gif_frame() -> Vec<u8> {
    let indices: Vec<u8> = (0..64).flat_map(|y| (0..96).map(move |x| index(x, y))).collect();
    gif_frame([0, 0, 96, 64], 10, &indices)
}

/// What it is, its blocks, and the durations and loops that they mean.
type GifCase<'a> = (&'a str, Vec<&'a [u8]>, Vec<u32>, u16);

/// What it is, its chunks, and the durations that they mean.
type WebpCase<'a> = (&'a str, Vec<Vec<u8>>, &'a [u32]);

const LOOP: &[u8] = b"\x21\xFF\x0BNETSCAPE2.0\x03\x01\x02\0\0";

#[test]
fn gif_screen_grows_to_the_first_frame() {
    for (width, height) in [(96, 64), (0, 0), (20, 20), (96, 10)] {
        let bytes = [gif_head(width, height, true), quarters_gif_frame(), vec![0x3B]].concat();
        assert_quarters_of(&bytes, &format!("{width} × {height}"));
    }
    // Later frames are cut off.
    let small = gif_frame([0, 0, 4, 4], 10, &[0; 16]);
    let large = gif_frame([2, 2, 9, 9], 10, &[1; 81]);
    let bytes = [gif_head(4, 4, true), small, large].concat();
    let facts = inspect(&bytes, LIMITS).expect("facts");
    assert_eq!((facts.width, facts.height), (4, 4));
}

#[test]
fn gif_frames_beyond_the_screen_count() {
    let small = gif_frame([0, 0, 4, 4], 10, &[0; 16]);
    // Only their sizes count; their pixels are missing.
    let large = gif_frame([0, 0, 2000, 1000], 10, &[1]);
    let gif =
        |count| [gif_head(4, 4, true), small.clone(), large.repeat(count), vec![0x3B]].concat();
    assert_eq!(inspect(&gif(4), LIMITS).map(|facts| facts.width), Ok(4));
    assert_eq!(failures(&gif(5)), [Some(ErrorCode::TooManyFrames); 2]);
}

#[test]
fn gif_blocks_that_are_odd_are_tolerated() {
    let frame = quarters_gif_frame();
    let last = gif_frame([0, 0, 2, 2], 20, &[3; 4]);
    let unknown = b"\x21\x42\x03abc\x02de\0".as_slice();
    let empty = gif_frame([5, 5, 0, 3], 30, &[]);
    let cases: [GifCase<'_>; 4] = [
        ("unknown extensions", vec![unknown, LOOP, &frame, unknown, &last], vec![100, 200], 3),
        ("a loop count after the first frame", vec![&frame, LOOP, &last], vec![100, 200], 3),
        ("zeros and rubbish", vec![&frame, &[0, 0], &last, &[0xAB, 0xCD]], vec![100, 200], 1),
        // It changes nothing, so that its time counts for the frame before.
        ("a frame without pixels", vec![LOOP, &frame, &empty, &last], vec![400, 200], 3),
    ];
    for (what, blocks, durations, plays) in cases {
        let bytes = [gif_head(96, 64, true), blocks.concat(), vec![0x3B]].concat();
        assert_quarters_of(&bytes, what);
        let rendered = render(&bytes, &presets(&[("p", 96, PresetFormat::Webp)])).expect(what);
        let data = &rendered.renditions[0].data;
        assert_eq!(frame_durations(data), durations, "{what}");
        let decoder = WebPDecoder::new(Cursor::new(&data[..])).expect("a WebP");
        let found = match decoder.loop_count() {
            image_webp::LoopCount::Forever => 0,
            image_webp::LoopCount::Times(times) => times.get(),
        };
        assert_eq!(found, plays, "{what}");
    }
}

#[test]
fn gif_without_colors_is_gray() {
    let bytes = [gif_head(2, 1, false), gif_frame([0, 0, 2, 1], 10, &[0, 1])].concat();
    let image = render_one(&bytes, 2, PresetFormat::Png).1.to_rgb8();
    assert_eq!((image.get_pixel(0, 0).0, image.get_pixel(1, 0).0), ([0; 3], [255; 3]));
}

#[test]
fn gif_frame_with_missing_pixels_is_corrupt() {
    let bytes = [gif_head(96, 64, true), gif_frame([0, 0, 96, 64], 10, &[1; 96 * 63])].concat();
    assert_eq!(failures(&bytes), [None, Some(ErrorCode::CorruptImage)]);
    // The second frame is announced, and then the file ends.
    let bytes = [gif_head(96, 64, true), quarters_gif_frame(), vec![0x2C, 0, 0]].concat();
    assert_eq!(failures(&bytes), [None, Some(ErrorCode::CorruptImage)]);
}

fn frame_durations(webp: &[u8]) -> Vec<u32> {
    let mut decoder = WebPDecoder::new(Cursor::new(webp)).expect("a WebP");
    let mut pixels = vec![0; decoder.output_buffer_size().expect("a size")];
    (0..decoder.num_frames()).map(|_| decoder.read_frame(&mut pixels).expect("a frame")).collect()
}

// BMP

fn png_chunk(kind: [u8; 4], content: &[u8]) -> Vec<u8> {
    let sum = crc32(&[&kind[..], content].concat());
    [&(content.len() as u32).to_be_bytes(), &kind[..], content, &sum.to_be_bytes()].concat()
}

/// A PNG of one byte per pixel or less, with chunks between header and pixels, and without an end.
fn png(color: u8, depth: u8, between: &[Vec<u8>], rows: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(rows).expect("memory");
    let pixels = encoder.finish().expect("memory");
    let mut header = [96_u32.to_be_bytes(), 64_u32.to_be_bytes()].concat();
    header.extend_from_slice(&[depth, color, 0, 0, 0]);
    let signature = b"\x89PNG\r\n\x1a\n".to_vec();
    let header = png_chunk(*b"IHDR", &header);
    [signature, header, between.concat(), png_chunk(*b"IDAT", &pixels)].concat()
}

fn indexed_rows(height: u32) -> Vec<u8> {
    (0..height).flat_map(|y| [0].into_iter().chain((0..96).map(move |x| index(x, y)))).collect()
}

fn palette_chunk() -> Vec<u8> {
    png_chunk(*b"PLTE", &PALETTE.concat())
}

#[test]
fn png_may_end_after_its_pixels() {
    let whole = png(3, 8, &[palette_chunk()], &indexed_rows(64));
    assert_quarters_of(&whole, "no end");
    let text = png_chunk(*b"tEXt", b"Title\0a long text");
    assert_quarters_of(&[&whole[..], &text[..20]].concat(), "a chunk is cut");
    // But all rows must be there, and all bytes of their chunk.
    let short = png(3, 8, &[palette_chunk()], &indexed_rows(63));
    assert_eq!(failures(&short)[1], Some(ErrorCode::CorruptImage));
    assert_eq!(failures(&whole[..whole.len() - 9])[1], Some(ErrorCode::CorruptImage));
}

#[test]
fn only_low_bits_of_a_transparent_color_count() {
    let rows: Vec<u8> = (0..64).flat_map(|_| [[0].as_slice(), &[0xF0; 12]].concat()).collect();
    for color in [1_u16, 255, 0x8001] {
        let transparent = png_chunk(*b"tRNS", &color.to_be_bytes());
        let image =
            render_one(&png(0, 1, &[transparent], &rows), 96, PresetFormat::Png).1.to_rgba8();
        assert_eq!(image.get_pixel(1, 1).0[3], 0, "{color}");
        assert_eq!(image.get_pixel(5, 1).0, [0, 0, 0, 255], "{color}");
    }
}

#[test]
fn size_of_a_png_is_judged_before_its_memory() {
    let mut huge = png(2, 8, &[], &[0; 4]);
    huge[16..24].fill(0x7F);
    assert_eq!(failures(&huge), [Some(ErrorCode::SideTooLong); 2]);
}

#[test]
fn invalid_png_palette_is_corrupt_or_ignored() {
    let invalid = png_chunk(*b"PLTE", &[255, 0, 0, 9]);
    let expected = Some(ErrorCode::CorruptImage);
    assert_eq!(
        failures(&png(3, 8, std::slice::from_ref(&invalid), &indexed_rows(64))),
        [expected; 2]
    );
    let gray: Vec<u8> = (0..64).flat_map(|_| [[0].as_slice(), &[77; 96]].concat()).collect();
    let image = render_one(&png(0, 8, &[invalid], &gray), 96, PresetFormat::Png).1.to_rgb8();
    assert_eq!(image.get_pixel(5, 5).0, [77; 3]);
}

#[test]
fn broken_animation_of_a_png_is_ignored() {
    let mut control = [1_u32, 5000, 5000, 7, 7].map(u32::to_be_bytes).concat();
    control.extend_from_slice(&[0, 1, 0, 1, 0, 0]);
    let between = [
        png_chunk(*b"acTL", &[0, 0, 0, 2, 0, 0, 0, 0]),
        png_chunk(*b"fcTL", &control),
        palette_chunk(),
    ];
    assert_quarters_of(&png(3, 8, &between, &indexed_rows(64)), "a broken APNG");
}

// WebP

fn riff(chunks: &[Vec<u8>]) -> Vec<u8> {
    let content = [b"WEBP".to_vec(), chunks.concat()].concat();
    [b"RIFF".to_vec(), (content.len() as u32).to_le_bytes().to_vec(), content].concat()
}

fn webp_chunk(kind: [u8; 4], content: &[u8]) -> Vec<u8> {
    let mut chunk = [&kind[..], &(content.len() as u32).to_le_bytes(), content].concat();
    chunk.resize(chunk.len().next_multiple_of(2), 0);
    chunk
}

fn webp_head(flags: u8) -> Vec<u8> {
    webp_chunk(*b"VP8X", &[flags, 0, 0, 0, 95, 0, 0, 63, 0, 0])
}

/// The chunk of the pixels of a still WebP.
fn webp_pixels(image: &DynamicImage) -> Vec<u8> {
    encoded(image, Codec::WebP)[12..].to_vec()
}

fn webp_frame(place: [u8; 4], duration: u8, parts: &[Vec<u8>]) -> Vec<u8> {
    let [left, top, width, height] = place;
    let header = [left, 0, 0, top, 0, 0, width - 1, 0, 0, height - 1, 0, 0, duration, 0, 0, 0];
    webp_chunk(*b"ANMF", &[header.to_vec(), parts.concat()].concat())
}

#[test]
fn webp_containers_that_are_odd_are_tolerated() {
    let pixels = webp_pixels(&quarters_image());
    let unknown = webp_chunk(*b"abcd", b"xyz");
    let anim = webp_chunk(*b"ANIM", &[0, 0, 0, 0, 3, 0]);
    let frame = webp_frame([0, 0, 96, 64], 100, std::slice::from_ref(&pixels));
    let small = webp_pixels(&RgbImage::from_pixel(2, 2, Rgb([0, 0, 0])).into());
    let last = webp_frame([20, 20, 2, 2], 200, &[unknown.clone(), small]);
    let cases: [WebpCase<'_>; 5] = [
        ("metadata that are gone", vec![webp_head(0b1100), pixels], &[]),
        ("one frame", vec![webp_head(2), anim.clone(), frame.clone()], &[]),
        ("two frames", vec![webp_head(2), anim.clone(), frame.clone(), last.clone()], &[100, 200]),
        (
            "unknown chunks",
            vec![
                webp_head(2),
                unknown.clone(),
                anim,
                unknown.clone(),
                frame.clone(),
                unknown,
                last.clone(),
            ],
            &[100, 200],
        ),
        ("no loop count", vec![webp_head(2), frame, last], &[100, 200]),
    ];
    for (what, chunks, durations) in cases {
        let bytes = riff(&chunks);
        assert_quarters_of(&bytes, what);
        if !durations.is_empty() {
            let rendered = render(&bytes, &presets(&[("p", 96, PresetFormat::Webp)])).expect(what);
            assert_eq!(frame_durations(&rendered.renditions[0].data), durations, "{what}");
        }
    }
}

#[test]
fn webp_frames_are_transparent_without_a_flag() {
    let hole = RgbaImage::from_pixel(4, 4, Rgba([9, 9, 9, 0]));
    let frame = webp_frame([0, 0, 4, 4], 100, &[webp_pixels(&hole.into())]);
    let bytes = riff(&[webp_head(2), webp_chunk(*b"ANIM", &[0; 6]), frame]);
    let image = render_one(&bytes, 96, PresetFormat::Png).1.to_rgba8();
    assert_eq!((image.get_pixel(1, 1).0[3], image.get_pixel(90, 60).0[3]), (0, 0));
}

#[test]
fn webp_frame_outside_of_its_canvas_or_cut_off_is_corrupt() {
    let pixels = webp_pixels(&quarters_image());
    let anim = webp_chunk(*b"ANIM", &[0; 6]);
    let outside = webp_frame([1, 0, 96, 64], 100, std::slice::from_ref(&pixels));
    let bytes = riff(&[webp_head(2), anim.clone(), outside]);
    assert_eq!(failures(&bytes), [None, Some(ErrorCode::CorruptImage)]);
    // Its size is compared before its pixels are decoded, for which there may be too little memory.
    let sides = [0x3FFE_u32 | 0x3FFE << 14, 0].map(u32::to_le_bytes).concat();
    let huge = webp_chunk(*b"VP8L", &[&[0x2F][..], &sides].concat());
    let mut huge = webp_frame([0, 0, 96, 64], 100, &[huge]);
    huge[8 + 6..8 + 12].copy_from_slice(&[0xFE, 0x3F, 0, 0xFE, 0x3F, 0]);
    let presets = presets(&[("p", 9, PresetFormat::Png)]);
    let bytes = riff(&[webp_head(2), anim.clone(), huge]);
    let failure = render(&bytes, &presets).expect_err("too large");
    assert!(failure.message.contains("beyond the canvas"), "{failure}");
    let frame = webp_frame([0, 0, 96, 64], 100, &[pixels]);
    let bytes = riff(&[webp_head(2), anim, frame.clone(), frame.clone()]);
    for missing in [20, frame.len()] {
        let cut = &bytes[..bytes.len() - missing];
        assert_eq!(failures(cut), [None, Some(ErrorCode::CorruptImage)], "{missing}");
    }
}

#[test]
fn profile_of_an_opaque_animation_counts_for_stills() {
    let icc = moxcms::ColorProfile::new_display_p3().encode().expect("a profile");
    let flat = RgbImage::from_pixel(96, 64, Rgb([200, 100, 100]));
    let frame = webp_frame([0, 0, 96, 64], 100, &[webp_pixels(&flat.into())]);
    let anim = webp_chunk(*b"ANIM", &[0; 6]);
    let bytes =
        riff(&[webp_head(0b10_0010), webp_chunk(*b"ICCP", &icc), anim, frame.clone(), frame]);
    for format in [PresetFormat::Png, PresetFormat::Jpeg] {
        let pixel = *render_one(&bytes, 96, format).1.to_rgba8().get_pixel(9, 9);
        let near = pixel.0.iter().zip([214, 95, 97]).all(|(a, b)| a.abs_diff(b) <= 5);
        assert!(near, "{format}: {pixel:?}");
    }
}
