//! Grids of AV1 tiles, chroma between pixels, and every width.

use image::{DynamicImage, GenericImageView};
use rav1e::prelude::ChromaSampling;

use super::{
    super::{
        coding::{Chroma, Cicp, Siting},
        convert::{AlphaPlane, Conversion},
        planes::{Planes, Samples},
    },
    file::{Item, file},
    fixture::{Av1, BLUE, RED, assert_close},
    *,
};

const GREEN: [u8; 3] = [40, 180, 60];

/// The flags of an AV1 configuration of 8 bits and 4:2:0.
const QUARTER: u8 = 0x0C;

fn tile(color: [u8; 3]) -> Item {
    let av1 = Av1 { halves: [color; 2], chroma: ChromaSampling::Cs420, ..Av1::default() };
    Item::av1(av1.encode(), QUARTER, (64, 48))
}

fn pixel(image: &DynamicImage, x: u32, y: u32) -> [u8; 3] {
    let [red, green, blue, _] = image.get_pixel(x, y).0;
    [red, green, blue]
}

#[test]
fn tiles_are_joined_and_cut_to_the_picture() {
    let tiles = [RED, BLUE, GREEN, RED].map(tile);
    let items = [&[Item::grid(2, 2, (101, 77), 2)][..], &tiles].concat();
    let bytes = file(*b"avif", &items);
    let header = header(&bytes).expect("made here");
    assert_eq!((header.width, header.height), (101, 77));
    let image = decode_coded(&bytes).expect("made here").image;
    assert_eq!((image.width(), image.height()), (101, 77));
    for (x, y, expected) in [(20, 20, RED), (99, 20, BLUE), (20, 75, GREEN), (100, 76, RED)] {
        assert_close(&pixel(&image, x, y), &expected, 4, &format!("{x}, {y}"));
    }
}

#[test]
fn alpha_of_tiles_and_of_the_grid_is_found() {
    let gray = |level| {
        let av1 = Av1 { halves: [[level; 3]; 2], chroma: ChromaSampling::Cs400, ..Av1::default() };
        Item::av1(av1.encode(), 0x1C, (64, 48))
    };
    let grid = || Item::grid(1, 2, (128, 48), 2);
    let tiles = [RED, BLUE].map(tile);
    let of_grid =
        [&[grid()][..], &tiles, &[Item::grid(1, 2, (128, 48), 5).alpha_of(1), gray(255), gray(90)]]
            .concat();
    let of_tiles = [&[grid()][..], &tiles, &[gray(255).alpha_of(2), gray(90).alpha_of(3)]].concat();
    for items in [of_grid, of_tiles] {
        let image = decode_coded(&file(*b"avif", &items)).expect("made here").image;
        let alpha = [30, 100].map(|x| image.get_pixel(x, 20).0[3]);
        assert_close(&alpha, &[255, 90], 2, "alpha");
    }
    let of_one = [&[grid()][..], &tiles, &[gray(90).alpha_of(3)]].concat();
    let expected = Err(Unsupported("alpha of some tiles only"));
    assert_eq!(header(&file(*b"avif", &of_one)).map(|_| ()), expected);
}

#[test]
fn impossible_grids_are_rejected() {
    let tiles = [RED, BLUE].map(tile);
    // Too wide, too narrow for two columns, and with a missing tile.
    for grid in [
        Item::grid(1, 2, (129, 48), 2),
        Item::grid(1, 2, (64, 48), 2),
        Item::grid(2, 1, (64, 48), 2),
        Item::grid(1, 3, (150, 48), 2),
        Item { data: vec![0, 0, 0], ..Item::grid(1, 2, (128, 48), 2) },
    ] {
        let items = [&[grid][..], &tiles].concat();
        assert_eq!(decode_coded(&file(*b"avif", &items)).err(), Some(Corrupt));
    }
    let many = file(*b"avif", &[Item::grid(41, 50, (9, 9), 2)]);
    assert_eq!(header(&many), Err(Unsupported("too many tiles")));
    // A tile that is not like the first.
    let wide = Av1 { size: (96, 48), chroma: ChromaSampling::Cs420, ..Av1::default() };
    let other = Item::av1(wide.encode(), QUARTER, (96, 48));
    let items = [Item::grid(1, 2, (128, 48), 2), tile(RED), other];
    let expected = Some(Unsupported("tiles that differ in size or format"));
    assert_eq!(decode_coded(&file(*b"avif", &items)).err(), expected);
}

#[test]
fn tiles_unlike_the_first_are_rejected_before_they_are_decoded() {
    for size in [(30_000, 30_000), (u32::MAX, u32::MAX), (64, 49)] {
        let junk = Item::av1(vec![0xFF; 40], QUARTER, size);
        let items = [Item::grid(1, 2, (128, 48), 2), tile(RED), junk];
        let expected = Some(Unsupported("tiles that differ in size or format"));
        assert_eq!(decode_coded(&file(*b"avif", &items)).err(), expected, "{size:?}");
    }
}

#[test]
fn memory_counts_tiles_beyond_the_picture() {
    let grid = |tile| file(*b"avif", &[Item::grid(1, 1, (60, 40), 2), tile]);
    let bytes = grid(tile(RED));
    assert_eq!(header(&bytes).expect("made here").largest, (64, 48));
    assert_eq!(decode_coded(&bytes).expect("made here").image.dimensions(), (60, 40));
    let huge = |size| grid(Item::av1(vec![0xFF; 40], QUARTER, size));
    let memory = header(&huge((20_000, 20_000))).expect("made here").decode_memory();
    assert!(memory > 20_000 * 20_000 * 3, "{memory}");
    let expected = Err(Unsupported("more than 2³⁰ pixels"));
    assert_eq!(header(&huge((40_000, 40_000))), expected);
    // The alpha, too.
    let alpha = Item::grid(1, 1, (64, 48), 3).alpha_of(1);
    let far = Item::av1(vec![0xFF; 40], QUARTER, (64, 20_000));
    let bytes = file(*b"avif", &[tile(RED), alpha, far]);
    assert_eq!(header(&bytes).expect("made here").largest, (64, 20_000));
}

/// Planes of one value each.
fn flat(size: (u32, u32), depth: u8, chroma: Chroma) -> Planes {
    let cicp = Cicp { primaries: 1, transfer: 13, matrix: 6, full_range: true };
    let mut planes = Planes { size, chroma, depth, cicp, samples: Vec::new() };
    let count = if chroma == Chroma::None { 1 } else { 3 };
    for (plane, value) in [200_u16, 100, 180].into_iter().enumerate().take(count) {
        let (width, height) = planes.plane_size(plane);
        planes.samples.push(if depth == 8 {
            Samples::Bytes(vec![u8::try_from(value).expect("small"); width * height])
        } else {
            Samples::Words(vec![value << (depth - 8); width * height])
        });
    }
    planes.checked().expect("made here")
}

#[test]
fn every_width_converts_to_the_same_color() {
    for chroma in [Chroma::None, Chroma::Quarter, Chroma::Half, Chroma::Full] {
        for depth in [8, 10, 12] {
            for width in 1..=300 {
                let planes = flat((width, 3), depth, chroma);
                for with_alpha in [false, true] {
                    let alpha = flat((width, 3), depth, Chroma::None);
                    let alpha =
                        AlphaPlane { planes: &alpha, full_range: true, premultiplied: false };
                    let conversion = Conversion {
                        cicp: planes.cicp,
                        siting: Siting::Center,
                        tone_map: None,
                        alpha: with_alpha.then_some(alpha),
                    };
                    let image = conversion.apply(&planes).expect("made here");
                    // BT.601: 200 + 1.402 × 52, 200 − 0.344 × −28 − 0.714 × 52, 200 + 1.772 × −28.
                    let expected = if chroma == Chroma::None { [200; 3] } else { [255, 172, 150] };
                    for (x, _, found) in image.pixels() {
                        let what = format!("{chroma:?} {depth} {width} at {x}");
                        assert_close(&found.0[..3], &expected, 1, &what);
                    }
                }
            }
        }
    }
}

/// The row of red of a picture whose right half has another Cr.
fn edge(chroma: Chroma, depth: u8, siting: Siting) -> Vec<u8> {
    let mut planes = flat((8, 4), depth, chroma);
    let (width, height) = planes.plane_size(2);
    let unit = 1_u16 << (depth - 8);
    let cr = (0..width * height).map(|at| if at % width < width / 2 { 148 } else { 108 } * unit);
    planes.samples[0] = Samples::Words(vec![100 * unit; 32]);
    planes.samples[1] = Samples::Words(vec![128 * unit; width * height]);
    planes.samples[2] = Samples::Words(cr.collect());
    let conversion = Conversion { cicp: planes.cicp, siting, tone_map: None, alpha: None };
    let image = conversion.apply(&planes).expect("made here").into_rgb8();
    image.rows().nth(1).expect("a row").map(|pixel| pixel.0[0]).collect()
}

#[test]
fn chroma_lies_where_the_file_says() {
    for depth in [8, 10, 12] {
        for chroma in [Chroma::Quarter, Chroma::Half] {
            // Cr of ±20 is ±28 of red: between the samples a quarter and three quarters of the step.
            let found = edge(chroma, depth, Siting::Center);
            assert_close(&found, &[128, 128, 128, 114, 86, 72, 72, 72], 1, "centered");
            let found = edge(chroma, depth, Siting::Left);
            assert_close(&found, &[128, 128, 128, 100, 72, 72, 72, 72], 1, "left");
        }
        let found = edge(Chroma::Full, depth, Siting::Center);
        assert_close(&found, &[128, 128, 128, 128, 72, 72, 72, 72], 1, "full");
    }
}

#[test]
fn ycgco_and_limited_identity_are_converted() {
    let mut planes = flat((4, 4), 8, Chroma::Full);
    planes.samples = [100, 140, 118].map(|value| Samples::Bytes(vec![value; 16])).into();
    let convert = |matrix, full_range| {
        let cicp = Cicp { matrix, full_range, ..planes.cicp };
        let conversion = Conversion { cicp, siting: Siting::Center, tone_map: None, alpha: None };
        conversion.apply(&planes).expect("made here").into_rgb8().get_pixel(1, 1).0
    };
    // Y 100, Cg 12, Co −10.
    assert_eq!(convert(8, true), [78, 112, 98]);
    assert_eq!(convert(0, true), [118, 100, 140]);
    assert_eq!(convert(0, false), [119, 98, 144]);
}

#[test]
fn chroma_is_interpolated_between_rows() {
    let column = |siting| {
        let mut planes = flat((4, 8), 8, Chroma::Quarter);
        let cr = (0..8).map(|at| if at < 4 { 148 } else { 108 });
        planes.samples = vec![
            Samples::Bytes(vec![100; 32]),
            Samples::Bytes(vec![128; 8]),
            Samples::Bytes(cr.collect()),
        ];
        let conversion = Conversion { cicp: planes.cicp, siting, tone_map: None, alpha: None };
        let image = conversion.apply(&planes).expect("made here").into_rgb8();
        image.rows().map(|mut row| row.next().expect("a pixel").0[0]).collect::<Vec<u8>>()
    };
    for siting in [Siting::Center, Siting::Left] {
        assert_close(&column(siting), &[128, 128, 128, 114, 86, 72, 72, 72], 1, "centered");
    }
    assert_close(&column(Siting::TopLeft), &[128, 128, 128, 100, 72, 72, 72, 72], 1, "top");
}
