//! Odd, damaged, incomplete and rare JPEGs. libjpeg-turbo's encoder and `jpeg-encoder` make the intact ones.

#![allow(clippy::cast_possible_truncation)]

use std::ops::Range;

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use safelight_domain::ErrorCode;

use super::{
    markers::{APP0, DHT, DQT, EOI, Parts, SOI, SOS},
    *,
};

mod damage;
mod oddities;
mod variants;

const WIDTH: u16 = 200;
const HEIGHT: u16 = 152;

/// A picture with edges, gradients and texture, so that every part of a scan matters.
fn picture() -> Vec<u8> {
    let mut state = 1_u32;
    let texture = std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 27) as u8
    });
    let position = (0..u32::from(HEIGHT)).flat_map(|y| (0..u32::from(WIDTH)).map(move |x| (x, y)));
    position
        .zip(texture)
        .flat_map(|((x, y), noise)| {
            let edge = if (x / 20 + y / 15) % 2 == 0 { 60 } else { 160 };
            [edge + noise, (x as u8 / 2).wrapping_add(noise), (y as u8).wrapping_add(40)]
        })
        .collect()
}

fn encoded(set: impl FnOnce(&mut Encoder<&mut Vec<u8>>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, 85);
    set(&mut encoder);
    encoder.encode(&picture(), WIDTH, HEIGHT, ColorType::Rgb).expect("encode");
    bytes
}

/// By libjpeg-turbo.
fn compressed(set: impl FnOnce(&mut Compressor) -> turbojpeg::Result<()>) -> Vec<u8> {
    let mut compressor = Compressor::new().expect("a compressor");
    set(&mut compressor).expect("options");
    let (width, height) = (usize::from(WIDTH), usize::from(HEIGHT));
    let (pixels, format) = (&picture()[..], PixelFormat::RGB);
    let image = Image { pixels, width, height, pitch: 3 * width, format };
    compressor.compress_to_vec(image).expect("compress")
}

/// One of each coding.
fn codings() -> Vec<(&'static str, Vec<u8>)> {
    let progressive = |subsamp| {
        compressed(|it| {
            it.set_quality(85)?;
            it.set_subsamp(subsamp)?;
            it.set_progressive(true)
        })
    };
    vec![
        ("4:4:4", encoded(|it| it.set_sampling_factor(SamplingFactor::F_1_1))),
        ("4:2:0", encoded(|it| it.set_sampling_factor(SamplingFactor::F_2_2))),
        ("optimized", encoded(|it| it.set_optimized_huffman_tables(true))),
        ("restarts", encoded(|it| it.set_restart_interval(5))),
        ("progressive 4:4:4", progressive(Subsamp::None)),
        ("progressive 4:2:0", progressive(Subsamp::Sub2x2)),
        ("few scans", encoded(|it| it.set_progressive_scans(4))),
    ]
}

/// The samples at full size.
fn decoded(bytes: &[u8]) -> Result<Vec<u8>, Failure> {
    decoded_at(bytes, 1.0)
}

fn decoded_at(bytes: &[u8], reduction: f64) -> Result<Vec<u8>, Failure> {
    let header = Header::read(bytes).expect("a header");
    let picture = decode(bytes, &header, reduction, &mut Resizer::new()?)?;
    Ok(match picture.pixels {
        Pixels::Planes(planes) => planes.samples,
        Pixels::Image(image) => image.into_bytes(),
    })
}

fn assert_damaged(bytes: &[u8], what: &str) {
    match decoded(bytes) {
        Ok(_) => panic!("{what} was not noticed"),
        Err(failure) => assert_eq!(failure.code, ErrorCode::CorruptImage, "{what}: {failure}"),
    }
}

/// The first segment of a marker.
fn segment(bytes: &[u8], marker: u8) -> Range<usize> {
    let part = Parts::new(bytes).find(|part| part.marker == marker);
    part.unwrap_or_else(|| panic!("no marker {marker:x}")).whole
}

/// The scans, each from SOS to the end of its data.
fn scans(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut parts = Parts::new(bytes);
    let mut scans = Vec::new();
    while let Some(part) = parts.next() {
        if part.marker == SOS {
            scans.push(part.whole.start..parts.skip_scan().end);
        }
    }
    scans
}

/// The data of the longest scan.
fn longest_data(bytes: &[u8]) -> Range<usize> {
    let mut parts = Parts::new(bytes);
    let mut longest = 0..0;
    while let Some(part) = parts.next() {
        if part.marker == SOS {
            let data = parts.skip_scan();
            if data.len() > longest.len() {
                longest = data;
            }
        }
    }
    longest
}

fn spliced(bytes: &[u8], range: Range<usize>, by: &[u8]) -> Vec<u8> {
    [&bytes[..range.start], by, &bytes[range.end..]].concat()
}

fn inserted(bytes: &[u8], at: usize, what: &[u8]) -> Vec<u8> {
    spliced(bytes, at..at, what)
}

fn without(bytes: &[u8], marker: u8) -> Vec<u8> {
    let mut left = bytes.to_vec();
    while let Some(part) = Parts::new(&left).find(|part| part.marker == marker) {
        left.drain(part.whole);
    }
    left
}
