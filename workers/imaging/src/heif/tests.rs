//! Generated and damaged files.

pub(crate) mod file;
pub(crate) mod fixture;
mod grids;
mod properties;

use image::{GrayImage, RgbImage};
use rav1e::prelude::{ChromaSampling, MatrixCoefficients, PixelRange};

use self::fixture::{
    Av1, BLUE, Fixture, RED, assert_close, assert_halves, boxed, gradient, halves, mean_difference,
};
use image::DynamicImage;

use super::{
    aperture::Crop,
    decode::decode_coded,
    error::HeifError::{self, Corrupt, Unsupported},
    properties::HeifHeader,
};
use crate::avif::encode;

fn header(file: &[u8]) -> Result<HeifHeader, HeifError> {
    super::decode::header(file, true)
}

#[test]
fn encoded_picture_survives_round_trip() {
    let rgba = DynamicImage::ImageRgba8(gradient(120, 90));
    let rgb = DynamicImage::ImageRgb8(rgba.to_rgb8());
    for image in [rgb, rgba] {
        let file = encode(&image, 90, None).expect("made here");
        let header = header(&file).expect("made here");
        assert_eq!((header.width, header.height, header.coding.depth), (120, 90, 8));
        assert_eq!(header.has_alpha, image.color().has_alpha());
        assert_eq!((header.orientation, header.crop), (1, None));
        let decoded = decode_coded(&file).expect("made here");
        assert_eq!(decoded.image.color(), image.color());
        assert!(mean_difference(decoded.image.as_bytes(), image.as_bytes()) <= 2);
        assert_eq!((decoded.cicp.primaries, decoded.cicp.transfer), (1, 13));
        assert_eq!(decoded.icc, None);
    }
}

#[test]
fn gray_is_encoded_as_rgb() {
    let gray = DynamicImage::ImageLuma8(GrayImage::from_pixel(40, 30, image::Luma([99])));
    let decoded =
        decode_coded(&encode(&gray, 80, None).expect("made here")).expect("made here").image;
    assert_close(&halves(&decoded).concat(), &[99; 6], 2, "gray");
}

#[test]
fn odd_and_tiny_pictures_survive_round_trip() {
    for (width, height) in [(1, 1), (2, 1), (1, 7), (17, 19), (33, 3), (129, 65)] {
        let image = DynamicImage::ImageRgba8(gradient(width, height));
        let decoded =
            decode_coded(&encode(&image, 90, None).expect("made here")).expect("made here").image;
        assert_eq!((decoded.width(), decoded.height()), (width, height));
        for chroma in [ChromaSampling::Cs420, ChromaSampling::Cs422] {
            for depth in [8, 10] {
                let size = (width.max(16) as usize + 1, height.max(16) as usize + 1);
                let fixture = Fixture::new(Av1 { size, chroma, depth, ..Av1::default() });
                assert_halves(&fixture.decode().image, &format!("{size:?} {chroma} {depth}"));
            }
        }
    }
}

#[test]
fn encode_stores_exif() {
    let exif = b"MM\0*\0\0\0\x08\0\0\0\0\0\0";
    let image = DynamicImage::ImageRgb8(RgbImage::new(20, 20));
    let file = encode(&image, 80, Some(exif)).expect("made here");
    assert!(file.windows(exif.len()).any(|window| window == exif));
    assert!(decode_coded(&file).is_ok());
}

#[test]
fn encode_rejects_empty_picture() {
    assert!(encode(&DynamicImage::ImageRgb8(RgbImage::new(0, 5)), 80, None).is_err());
}

#[test]
fn every_layout_depth_range_and_matrix_gives_the_right_colors() {
    for chroma in [ChromaSampling::Cs420, ChromaSampling::Cs422, ChromaSampling::Cs444] {
        for depth in [8, 10, 12] {
            for range in [PixelRange::Full, PixelRange::Limited] {
                for matrix in [
                    MatrixCoefficients::BT601,
                    MatrixCoefficients::BT709,
                    MatrixCoefficients::BT2020NCL,
                ] {
                    let what = format!("{chroma} {depth} {range} {matrix}");
                    let av1 = Av1 { chroma, depth, range, matrix, ..Av1::default() };
                    let fixture = Fixture::new(av1);
                    let header = header(&fixture.build()).expect("made here");
                    assert_eq!(usize::from(header.coding.depth), depth);
                    let decoded = fixture.decode().image;
                    assert_eq!(decoded.color(), image::ColorType::Rgb8, "{what}");
                    assert_halves(&decoded, &what);
                    let decoded = fixture.with_alpha(av1).decode().image;
                    assert_eq!(decoded.color(), image::ColorType::Rgba8, "{what}");
                    assert_halves(&decoded, &what);
                }
            }
        }
    }
}

#[test]
fn gbr_planes_give_the_right_colors() {
    for depth in [8, 10, 12] {
        for range in [PixelRange::Full, PixelRange::Limited] {
            let matrix = MatrixCoefficients::Identity;
            let nclx = [&b"nclx\0\x01\0\x08\0\0"[..], &[u8::from(range == PixelRange::Full) << 7]];
            let fixture = Fixture::new(Av1 { depth, range, matrix, ..Av1::default() });
            let fixture = fixture.with(*b"colr", &nclx.concat());
            assert_halves(&fixture.decode().image, &format!("{depth} {range}"));
        }
    }
}

fn gray(range: PixelRange, depth: usize, left: u8, right: u8) -> Av1 {
    let halves = [[left; 3], [right; 3]];
    Av1 { chroma: ChromaSampling::Cs400, range, depth, halves, ..Av1::default() }
}

#[test]
fn single_plane_decodes_to_gray() {
    for depth in [8, 10, 12] {
        for range in [PixelRange::Full, PixelRange::Limited] {
            let decoded = Fixture::new(gray(range, depth, 0, 180)).decode().image;
            assert_eq!(decoded.color(), image::ColorType::L8);
            let expected = [[0; 3], [180; 3]].concat();
            assert_close(&halves(&decoded).concat(), &expected, 2, &range.to_string());
        }
    }
}

#[test]
fn alpha_is_scaled_to_full_range() {
    for depth in [8, 10] {
        let alpha = gray(PixelRange::Limited, depth, 255, 60);
        for color in [Av1::default(), gray(PixelRange::Full, 10, 30, 90)] {
            let fixture = Fixture::new(color).with_alpha(alpha);
            assert!(header(&fixture.build()).expect("made here").has_alpha);
            let decoded = fixture.decode().image.into_rgba8();
            let found = [16, 48].map(|x| decoded.get_pixel(x, 24).0[3]);
            assert_close(&found, &[255, 60], 2, "alpha");
        }
    }
}

#[test]
fn premultiplied_colors_are_divided_by_alpha() {
    let halves = [[100, 20, 15], [255, 255, 255]];
    let color = Av1 { halves, ..Av1::default() };
    let mut fixture = Fixture::new(color).with_alpha(gray(PixelRange::Full, 8, 128, 0));
    fixture.premultiplied = true;
    let decoded = fixture.decode().image.into_rgba8();
    assert_close(&decoded.get_pixel(16, 24).0, &[199, 40, 30, 128], 4, "half transparent");
    assert_close(&decoded.get_pixel(48, 24).0[3..], &[0], 1, "transparent");
}

#[test]
fn rotation_and_mirror_combine_into_orientation() {
    let expected = [(None, [1, 8, 3, 6]), (Some(0), [4, 5, 2, 7]), (Some(1), [2, 7, 4, 5])];
    for (mirror, turns) in expected {
        for (rotation, orientation) in (0..).zip(turns) {
            let mut fixture = Fixture::new(Av1::default()).with(*b"irot", &[rotation]);
            if let Some(axis) = mirror {
                fixture = fixture.with(*b"imir", &[axis]);
            }
            let header = header(&fixture.build()).expect("made here");
            assert_eq!(
                (header.orientation, header.width),
                (orientation, 64),
                "{rotation} {mirror:?}"
            );
        }
    }
}

#[test]
fn container_colors_override_bitstream_colors() {
    let bt709 = Av1 { matrix: MatrixCoefficients::BT709, ..Av1::default() };
    let halves = [RED, BLUE].map(|color| bt709.samples(color));
    // The samples of BT.709, in a bitstream that declares them as G, B and R.
    let halves = halves.map(|[y, u, v]| [v, y, u].map(|s| u8::try_from(s).expect("made here")));
    let gbr = Av1 { matrix: MatrixCoefficients::Identity, halves, ..Av1::default() };
    let decoded = Fixture::new(gbr).with(*b"colr", b"nclx\0\x09\0\x0d\0\x01\x80").decode();
    assert_halves(&decoded.image, "nclx");
    assert_eq!((decoded.cicp.primaries, decoded.cicp.transfer), (9, 13));
}

#[test]
fn decode_returns_icc_profile() {
    let fixture = Fixture::new(Av1::default()).with(*b"colr", b"profsome profile");
    assert_eq!(fixture.decode().icc.as_deref(), Some(&b"some profile"[..]));
}

#[test]
fn decode_crops_to_clean_aperture() {
    // 30 × 20, centered 16 to the right of the center of the picture and 4 above it.
    let aperture = [30, 1, 20, 1, 16, 1, 4_u32.wrapping_neg(), 1].map(u32::to_be_bytes);
    let fixture = Fixture::new(Av1::default()).with(*b"clap", &aperture.concat());
    let expected = Crop { x: 33, y: 10, width: 30, height: 20 };
    assert_eq!(header(&fixture.build()).expect("made here").crop, Some(expected));
    let decoded = fixture.decode().image;
    assert_eq!((decoded.width(), decoded.height()), (30, 20));
    assert_close(&halves(&decoded).concat(), &[BLUE; 2].concat(), 3, "right half");
}

#[test]
fn invalid_clean_aperture_is_ignored() {
    let invalid: [[u32; 8]; 5] = [
        [65, 1, 20, 1, 0, 1, 0, 1],  // wider than the picture
        [30, 1, 20, 1, 18, 1, 0, 1], // not inside the picture
        [30, 1, 20, 1, 1, 2, 0, 1],  // half a pixel
        [30, 0, 20, 1, 0, 1, 0, 1],  // a denominator of 0
        [0, 1, 20, 1, 0, 1, 0, 1],   // empty
    ];
    for aperture in invalid {
        let body = aperture.map(u32::to_be_bytes).concat();
        let fixture = Fixture::new(Av1::default()).with(*b"clap", &body);
        assert_eq!(header(&fixture.build()).expect("made here").crop, None, "{aperture:?}");
    }
}

#[test]
fn decode_reads_data_from_extents_and_idat() {
    let mut fixture = Fixture::new(Av1::default());
    let length = fixture.color.len();
    fixture.extents = Some(vec![(0, 5), (5, 7), (12, length - 12)]);
    assert_halves(&fixture.decode().image, "three extents");
    fixture.in_idat = true;
    assert_halves(&fixture.decode().image, "idat");
}

#[test]
fn overlapping_extents_cannot_inflate_small_file() {
    let mut fixture = Fixture::new(Av1::default());
    fixture.extents = Some(vec![(0, fixture.color.len()); 60_000]);
    // The list of extents itself makes the file large, so the data must be larger.
    fixture.color.extend(vec![0; 50_000]);
    fixture.extents = Some(vec![(0, fixture.color.len()); 1000]);
    assert_eq!(decode_coded(&fixture.build()).err(), Some(Corrupt));
}

#[test]
fn size_that_differs_from_bitstream_is_rejected() {
    for size in [(64, 47), (63, 48), (48, 64), (65, 48), (4000, 4000), (1, 1)] {
        let fixture = Fixture { size, ..Fixture::new(Av1::default()) };
        assert_eq!(decode_coded(&fixture.build()).err(), Some(Corrupt), "{size:?}");
    }
    let fixture = Fixture { size: (40_000, 40_000), ..Fixture::new(Av1::default()) };
    assert!(matches!(header(&fixture.build()), Err(Unsupported(_))));
    let fixture = Fixture { size: (0, 40), ..Fixture::new(Av1::default()) };
    assert_eq!(header(&fixture.build()), Err(Corrupt));
}

#[test]
fn alpha_of_different_size_is_rejected() {
    let alpha = Av1 { size: (32, 48), ..Av1::default() };
    let fixture = Fixture::new(Av1::default()).with_alpha(alpha);
    assert_eq!(decode_coded(&fixture.build()).err(), Some(Corrupt));
}

#[test]
fn unsupported_features_are_named() {
    let mut fixture = Fixture::new(Av1::default());
    let file = fixture.clone().with(*b"a1op", &[1]).build();
    assert_eq!(header(&file), Err(Unsupported("operating points")));
    let file = fixture.clone().with(*b"lsel", &[0, 1]).build();
    assert_eq!(header(&file), Err(Unsupported("a chosen layer")));
    let file = fixture.clone().with(*b"what", &[]).build();
    assert_eq!(header(&file), Err(Unsupported("an unknown essential property")));
    let file = fixture.clone().with(*b"colr", b"nclx\0\x09\0\x10\0\x0e\x80").build();
    assert_eq!(decode_coded(&file).err(), Some(Unsupported("matrix coefficients")));
    fixture.kind = Some(*b"iovl");
    assert_eq!(header(&fixture.build()), Err(Unsupported("derived image")));
    fixture.kind = Some(*b"jpeg");
    assert_eq!(header(&fixture.build()), Err(Unsupported("a codec other than AV1 and HEVC")));
    let compact = [boxed(*b"ftyp", &[b"mif3\0\0\0\0avif"]), boxed(*b"mini", &[&[0; 4]])].concat();
    assert_eq!(header(&compact), Err(Unsupported("a compact header")));
    let sequence = [boxed(*b"ftyp", &[b"avis\0\0\0\0"]), boxed(*b"meta", &[&[0; 4]])].concat();
    let expected = Unsupported("an image sequence without a still picture");
    assert_eq!(header(&sequence), Err(expected));
}

#[test]
fn many_frames_in_one_item_are_rejected() {
    let mut fixture = Fixture::new(Av1::default());
    fixture.color = fixture.color.repeat(4);
    assert_halves(&fixture.decode().image, "four frames");
    fixture.color = Av1::default().encode().repeat(5);
    assert_eq!(decode_coded(&fixture.build()).err(), Some(Unsupported("many frames in one item")));
}

#[test]
fn other_formats_are_corrupt_avif() {
    for file in [&b""[..], b"hello, world", b"\0\0\0\x14ftypisom\0\0\0\0isom"] {
        assert_eq!(header(file), Err(Corrupt));
        assert_eq!(decode_coded(file).err(), Some(Corrupt));
    }
}

/// Small files of several kinds.
fn samples() -> Vec<Vec<u8>> {
    let rgba = DynamicImage::ImageRgba8(gradient(70, 50));
    let subsampled = Av1 { chroma: ChromaSampling::Cs420, depth: 10, ..Av1::default() };
    let mut premultiplied = Fixture::new(subsampled).with_alpha(Av1::default());
    premultiplied.premultiplied = true;
    vec![encode(&rgba, 70, None).expect("made here"), premultiplied.with(*b"irot", &[1]).build()]
}

#[test]
fn truncated_files_are_rejected() {
    for file in samples() {
        for part in 0..50 {
            let cut = &file[..file.len() * part / 50];
            let _ = header(cut);
            assert!(decode_coded(cut).is_err(), "{part}/50");
        }
    }
}

#[test]
fn damaged_files_are_rejected_or_decoded_at_their_size() {
    for file in samples() {
        for round in 0..500_usize {
            let mut damaged = file.clone();
            // Knuth's multiplicative hash spreads the flipped bits over the file.
            let bit = round * 2_654_435_761 % (file.len() * 8);
            damaged[bit / 8] ^= 1 << (bit % 8);
            if let (Ok(picture), Ok(header)) = (decode_coded(&damaged), header(&damaged))
                && header.crop.is_none()
            {
                let size = (picture.image.width(), picture.image.height());
                assert_eq!(size, (header.width, header.height), "bit {bit}");
            }
        }
    }
}
