//! Animations.

use image::{Delay, Frame, codecs::gif::GifEncoder};
use image_webp::{LoopCount, WebPDecoder};

use super::*;

const RED: [u8; 4] = [250, 0, 0, 255];
const GREEN: [u8; 4] = [0, 250, 0, 255];
const BLUE: [u8; 4] = [0, 0, 250, 255];

/// A GIF that repeats forever. Each frame has one color and a duration in ms.
pub(super) fn gif(width: u32, height: u32, frames: &[([u8; 4], u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    encoder.set_repeat(image::codecs::gif::Repeat::Infinite).expect("set");
    for (color, ms) in frames {
        let canvas = RgbaImage::from_pixel(width, height, Rgba(*color));
        let frame = Frame::from_parts(canvas, 0, 0, Delay::from_numer_denom_ms(*ms, 1));
        encoder.encode_frame(frame).expect("encode");
    }
    drop(encoder);
    bytes
}

/// The frames of an animated WebP: the color of the central pixel, and the duration in ms.
fn frames(bytes: &[u8]) -> Vec<([u8; 4], u32)> {
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).expect("a WebP");
    assert!(decoder.is_animated());
    let (width, height) = decoder.dimensions();
    let size = decoder.output_buffer_size().expect("a size");
    let channels = size / (width * height) as usize;
    let middle = ((height / 2 * width + width / 2) as usize) * channels;
    let shown = (0..decoder.num_frames()).map(|_| {
        let mut pixels = vec![0; size];
        let ms = decoder.read_frame(&mut pixels).expect("a frame");
        let mut pixel = [255; 4];
        pixel[..channels].copy_from_slice(&pixels[middle..middle + channels]);
        (pixel, ms)
    });
    shown.collect()
}

fn assert_shows(found: &[([u8; 4], u32)], expected: &[([u8; 4], u32)]) {
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((found, ms), (color, expected_ms)) in found.iter().zip(expected) {
        assert_eq!(ms, expected_ms);
        let near = found.iter().zip(color).all(|(a, b)| a.abs_diff(*b) < 12);
        assert!(near, "{found:?} should be about {color:?}");
    }
}

#[test]
fn animation_stays_animated() {
    // The second and the third frame are equal. The last one has a duration that browsers replace by 100 ms.
    let bytes = gif(80, 60, &[(RED, 500), (GREEN, 200), (GREEN, 300), (BLUE, 0)]);
    let expected = [(RED, 500), (GREEN, 500), (BLUE, 100)];
    let presets = presets(&[
        ("auto", 40, PresetFormat::Auto),
        ("whole", 500, PresetFormat::Webp),
        ("larger", 600, PresetFormat::Webp),
        ("still", 40, PresetFormat::Jpeg),
        ("png", 40, PresetFormat::Png),
    ]);
    let rendered = render(&bytes, &presets).expect("a valid picture").renditions;
    let one = |name: &str| rendered.iter().find(|one| one.rendition.preset == name).expect(name);
    assert_eq!(rendered.len(), 5);
    for (name, size) in [("auto", (40, 30)), ("whole", (80, 60)), ("larger", (80, 60))] {
        let Rendered { rendition, data } = one(name);
        assert_eq!(
            (rendition.format, rendition.width, rendition.height),
            (ImageFormat::Webp, size.0, size.1)
        );
        assert_shows(&frames(data), &expected);
        let decoder = WebPDecoder::new(Cursor::new(&data[..])).expect("a WebP");
        assert!(matches!(decoder.loop_count(), LoopCount::Forever));
    }
    for name in ["still", "png"] {
        let still = image::load_from_memory(&one(name).data).expect("a picture").to_rgba8();
        assert_near(*still.get_pixel(20, 15), [250, 0, 0], name);
    }
    // Renditions of animations can be rendered again.
    let again = render(&one("whole").data, &presets).expect("a valid picture").renditions;
    let again = again.iter().find(|one| one.rendition.preset == "auto").expect("auto");
    assert_shows(&frames(&again.data), &expected);
}

#[test]
fn transparent_frame_keeps_colors_of_other_frames() {
    let transparent = [0, 0, 0, 0];
    let bytes = gif(40, 40, &[(RED, 100), (transparent, 100), (BLUE, 100)]);
    let (one, _) = render_animated(&bytes);
    let shown = frames(&one);
    // What the transparent frame shows depends on its disposal method, so it is not compared.
    assert_shows(&shown[..1], &[(RED, 100)]);
    assert_shows(&shown[shown.len() - 1..], &[(BLUE, 100)]);
}

fn render_animated(bytes: &[u8]) -> (Vec<u8>, Rendition) {
    let presets = presets(&[("p", 20, PresetFormat::Auto)]);
    let rendered = render(bytes, &presets).expect("a valid picture").renditions;
    (rendered[0].data.to_vec(), rendered[0].rendition.clone())
}

#[test]
fn single_frame_renders_as_still_picture() {
    let (one, _) = render_one(&gif(40, 40, &[(RED, 100)]), 20, PresetFormat::Auto);
    assert_eq!(one.rendition.format, ImageFormat::Jpeg);
}

#[test]
fn excessive_animations_are_rejected_by_their_headers() {
    let many: Vec<_> = (0..=LIMITS.max_frames).map(|n| ([n as u8, 0, 0, 255], 20)).collect();
    let cases = [gif(4, 4, &many), gif(1000, 600, &[(RED, 20); 20])];
    for bytes in cases {
        let expected = Some(ErrorCode::TooManyFrames);
        assert_eq!(failures(&bytes), [expected, expected]);
    }
    assert_eq!(failures(&gif(4, 4, &many[..LIMITS.max_frames as usize])), [None, None]);
}

#[test]
fn gif_without_end_marker_is_accepted() {
    let bytes = gif(40, 40, &[(RED, 100), (GREEN, 100), (BLUE, 100)]);
    let (one, _) = render_animated(bytes.strip_suffix(b"\x3B").expect("an end marker"));
    assert_shows(&frames(&one), &[(RED, 100), (GREEN, 100), (BLUE, 100)]);
}

#[test]
fn frame_disposal_clears_its_area() {
    // A moving dot: each frame clears its area after its duration.
    let canvas =
        |at: u32| {
            RgbaImage::from_fn(40, 40, |x, y| {
                if x / 10 == at && y < 10 { Rgba(RED) } else { Rgba([0; 4]) }
            })
        };
    let mut gif = Vec::new();
    let mut encoder = GifEncoder::new(&mut gif);
    for at in 0..3 {
        let delay = Delay::from_numer_denom_ms(100, 1);
        encoder.encode_frame(Frame::from_parts(canvas(at), 0, 0, delay)).expect("encode");
    }
    drop(encoder);
    // In the WebP, set the disposal flag of every frame (beside the blending flag).
    let (mut webp, _) = render_animated(&gif);
    let frames: Vec<_> =
        webp.windows(4).enumerate().filter(|(_, id)| id == b"ANMF").map(|(at, _)| at).collect();
    for at in frames {
        webp[at + 8 + 15] = 0b01;
    }
    let again = render_animated(&webp).0;
    let mut decoder = WebPDecoder::new(Cursor::new(&again[..])).expect("a WebP");
    let mut pixels = vec![0; decoder.output_buffer_size().expect("a size")];
    let mut covered = Vec::new();
    for _ in 0..decoder.num_frames() {
        decoder.read_frame(&mut pixels).expect("a frame");
        covered.push(pixels.chunks(4).filter(|pixel| pixel[3] > 128).count());
    }
    let first = covered[0];
    assert!(first > 0 && covered.iter().all(|count| count.abs_diff(first) <= 5), "{covered:?}");
}

#[test]
fn truncated_animation_is_corrupt() {
    let bytes = gif(40, 40, &[(RED, 100), (GREEN, 100), (BLUE, 100)]);
    let [inspected, rendered] = failures(&bytes[..bytes.len() * 2 / 3]);
    assert_eq!((inspected, rendered), (None, Some(ErrorCode::CorruptImage)));
}

#[test]
fn frame_with_wrong_size_is_corrupt() {
    // Found by fuzzing: `image-webp` panics at such a frame if it has alpha.
    let (mut bytes, _) = render_animated(&gif(40, 40, &[([0; 4], 100), (RED, 100)]));
    let alpha = bytes.windows(4).position(|kind| kind == b"ALPH").expect("a frame with alpha");
    let code = bytes[alpha..].windows(3).position(|code| code == b"\x9D\x01\x2A");
    let sides = alpha + code.expect("a start code") + 3;
    bytes[sides..sides + 4].copy_from_slice(&[1, 0, 1, 0]);
    assert_eq!(failures(&bytes), [None, Some(ErrorCode::CorruptImage)]);
}
