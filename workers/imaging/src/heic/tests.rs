//! HEIC files made by an encoder in Rust, and two bitstreams of formats that it lacks.

use heifer_hevc_enc::encoder::{EncodedPicture, EncoderConfig, Planes16, encode_picture16};
use image::DynamicImage;

use crate::heif::{
    aperture::Crop,
    boxes::FourCc,
    coding::UNSPECIFIED,
    decode::{decode_coded, header},
    error::HeifError::{Corrupt, Unsupported},
    tests::{
        file::{Item, file},
        fixture::{BLUE, RED, assert_close, assert_halves, halves},
    },
};

const SIZE: (u32, u32) = (64, 48);

/// A picture with one color in its left half and another in its right half, in BT.601.
#[derive(Clone, Copy)]
struct Hevc {
    depth: u8,
    gray: bool,
    full_range: bool,
    /// Primaries, transfer and matrix in the bitstream.
    colors: (u8, u8, u8),
    halves: [[u8; 3]; 2],
}

impl Default for Hevc {
    fn default() -> Self {
        Self { depth: 8, gray: false, full_range: true, colors: (1, 13, 6), halves: [RED, BLUE] }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "samples")]
impl Hevc {
    /// Luma, Cb and Cr of a color.
    fn samples(&self, color: [u8; 3]) -> [u16; 3] {
        let [red, green, blue] = color.map(|channel| f64::from(channel) / 255.0);
        let luma = 0.299 * red + 0.587 * green + 0.114 * blue;
        let (cb, cr) = ((blue - luma) / 1.772, (red - luma) / 1.402);
        let unit = f64::from(1_u16 << (self.depth - 8));
        let most = 256.0 * unit - 1.0;
        let (low, luma_range, range) = if self.full_range {
            (0.0, most, most)
        } else {
            (16.0 * unit, 219.0 * unit, 224.0 * unit)
        };
        let chroma = |value: f64| (value * range + 128.0 * unit).round() as u16;
        [(luma * luma_range + low).round() as u16, chroma(cb), chroma(cr)]
    }

    fn encode(&self) -> EncodedPicture {
        let halves = self.halves.map(|color| self.samples(color));
        let plane = |index: usize, width: usize, height: usize| -> Vec<u16> {
            (0..width * height)
                .map(|at| halves[usize::from(at % width >= width / 2)][index])
                .collect()
        };
        let (y, cb, cr) = (plane(0, 64, 48), plane(1, 32, 24), plane(2, 32, 24));
        let chroma = (!self.gray).then_some((&cb[..], &cr[..]));
        let planes = Planes16 { y: &y, chroma, bit_depth: self.depth };
        let config = EncoderConfig { qp: 8, full_range: self.full_range, colour: self.colors };
        encode_picture16(SIZE.0, SIZE.1, planes, &config).expect("made here")
    }

    fn item(&self) -> Item {
        let picture = self.encode();
        let chroma = u8::from(!self.gray);
        let configuration = configuration(chroma, self.depth, &picture.parameter_sets);
        Item::new(*b"hvc1", units(&picture.slices), SIZE).with(*b"hvcC", &configuration)
    }
}

/// Units with their lengths before them.
fn units(units: &[Vec<u8>]) -> Vec<u8> {
    let sized = |unit: &Vec<u8>| {
        [&u32::try_from(unit.len()).expect("small").to_be_bytes()[..], unit].concat()
    };
    units.iter().flat_map(sized).collect()
}

fn configuration(chroma: u8, depth: u8, sets: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    bytes[0] = 1;
    bytes.extend([0xFC | chroma, 0xF8 | (depth - 8), 0xF8 | (depth - 8), 0, 0, 3]);
    bytes.push(u8::try_from(sets.len()).expect("few"));
    for set in sets {
        bytes.extend([set[0] >> 1, 0, 1]);
        bytes.extend(u16::try_from(set.len()).expect("small").to_be_bytes());
        bytes.extend(set);
    }
    bytes
}

fn decoded(items: &[Item]) -> DynamicImage {
    decode_coded(&file(*b"heic", items)).expect("made here").image
}

#[test]
fn every_depth_and_range_gives_the_right_colors() {
    for depth in [8, 10] {
        for full_range in [true, false] {
            let hevc = Hevc { depth, full_range, ..Hevc::default() };
            let bytes = file(*b"heic", &[hevc.item()]);
            let header = header(&bytes, true).expect("made here");
            assert_eq!((header.width, header.height), SIZE);
            assert_eq!(header.coding.depth, depth);
            // Without a color property, the bitstream declares the colors.
            let picture = decode_coded(&bytes).expect("made here");
            assert_halves(&picture.image, &format!("{depth} {full_range}"));
            assert_eq!(picture.cicp.transfer, 13);
        }
    }
}

#[test]
fn container_colors_override_those_of_the_bitstream() {
    let hevc = Hevc { full_range: false, colors: (9, UNSPECIFIED, 9), ..Hevc::default() };
    let item = hevc.item().with(*b"colr", b"nclx\0\x0c\0\x0d\0\x06\0");
    let picture = decode_coded(&file(*b"heic", &[item])).expect("made here");
    assert_halves(&picture.image, "nclx");
    assert_eq!((picture.cicp.primaries, picture.cicp.transfer), (12, 13));
}

#[test]
fn gray_alpha_and_grids_are_decoded() {
    let gray = Hevc { gray: true, halves: [[20; 3], [180; 3]], ..Hevc::default() };
    let image = decoded(&[gray.item()]);
    assert_eq!(image.color(), image::ColorType::L8);
    assert_close(&halves(&image).concat(), &[20, 20, 20, 180, 180, 180], 2, "gray");
    // Alpha has full range even if the bitstream declares another.
    let alpha = Hevc { full_range: false, gray: true, ..gray };
    let levels = alpha.samples([180; 3])[0];
    let image = decoded(&[Hevc::default().item(), alpha.item().alpha_of(1)]);
    assert_eq!(u16::from(image.to_rgba8().get_pixel(48, 20).0[3]), levels);
    assert_halves(&image, "with alpha");
    let tiles = [Hevc::default().item(), Hevc::default().item()];
    let image = decoded(&[&[Item::grid(1, 2, (100, 40), 2)][..], &tiles].concat());
    assert_eq!((image.width(), image.height()), (100, 40));
    let pixels = image.to_rgb8();
    for (x, expected) in [(10, RED), (50, BLUE), (70, RED), (99, BLUE)] {
        assert_close(&pixels.get_pixel(x, 39).0, &expected, 3, &x.to_string());
    }
}

#[test]
fn orientation_and_crop_are_those_of_the_container() {
    let aperture = [30_u32, 1, 20, 1, 16, 1, 0, 1].map(u32::to_be_bytes).concat();
    let item = Hevc::default().item().with(*b"clap", &aperture).with(*b"irot", &[1]);
    let bytes = file(*b"heic", &[item]);
    let header = header(&bytes, true).expect("made here");
    assert_eq!((header.orientation, header.visible_size()), (8, (30, 20)));
    let image = decode_coded(&bytes).expect("made here").image;
    assert_close(&halves(&image).concat(), &[BLUE; 2].concat(), 3, "right half");
}

#[test]
fn mirror_and_rotation_count_in_the_order_of_the_file() {
    let orientation =
        |item: Item| header(&file(*b"heic", &[item]), true).expect("made here").orientation;
    let item = || Hevc::default().item();
    // A quarter turn to the left and then a mirror, and the other way around (EXIF 7 and 5).
    assert_eq!(orientation(item().with(*b"irot", &[1]).with(*b"imir", &[1])), 7);
    assert_eq!(orientation(item().with(*b"imir", &[1]).with(*b"irot", &[1])), 5);
}

/// What libheif 1.23.6 shows of pictures of 64 × 64 pixels.
#[test]
fn clean_aperture_is_rounded_and_cut_off() {
    let cases: [([i32; 8], Option<[u32; 4]>); 12] = [
        ([30, 1, 20, 1, 1, 2, 1, 2], Some([17, 23, 30, 20])),
        ([61, 2, 61, 2, 0, 1, 0, 1], Some([16, 17, 31, 31])),
        ([31, 1, 31, 1, 0, 1, 0, 1], Some([16, 17, 31, 31])),
        ([100, 3, 100, 3, -7, 4, -7, 4], Some([13, 14, 33, 33])),
        ([60, 1, 60, 1, 20, 1, -20, 1], Some([22, 0, 42, 43])),
        ([70, 1, 70, 1, 0, 1, 0, 1], Some([0, 0, 64, 64])),
        ([64, 1, 10, 1, 0, 1, 60, 1], None),
        ([10, 1, 64, 1, -60, 1, 0, 1], Some([0, 0, 64, 64])),
        ([1, 3, 20, 1, 0, 1, 0, 1], None),
        ([30, 0, 20, 1, 0, 1, 0, 1], None),
        ([30, 1, 20, 1, 0, 0, 0, 1], None),
        ([-1, 1, 20, 1, 0, 1, 0, 1], None),
    ];
    for (numbers, expected) in cases {
        let numbers = numbers.map(i32::cast_unsigned);
        assert_eq!(
            visible(&[(*b"clap", numbers.map(u32::to_be_bytes).concat())]),
            expected,
            "{numbers:?}"
        );
    }
}

/// The visible part of 64 × 64 pixels: left, top, width and height.
fn visible(properties: &[(FourCc, Vec<u8>)]) -> Option<[u32; 4]> {
    let mut item = Hevc::default().item();
    item.properties[0].1 = [[0; 4], 64_u32.to_be_bytes(), 64_u32.to_be_bytes()].concat();
    for (kind, body) in properties {
        item = item.with(*kind, body);
    }
    let header = header(&file(*b"heic", &[item]), true).expect("made here");
    header.crop.map(|Crop { x, y, width, height }| [x, y, width, height])
}

#[test]
fn clean_aperture_counts_in_the_order_of_the_file() {
    let aperture = [10_u32, 1, 20, 1, 5, 1, 12, 1].map(u32::to_be_bytes).concat();
    let aperture = || (*b"clap", aperture.clone());
    let (turn, mirror) = (|turns| (*b"irot", vec![turns]), |axis| (*b"imir", vec![axis]));
    assert_eq!(visible(&[aperture(), turn(1), mirror(0)]), Some([32, 34, 10, 20]));
    let cases = [
        (vec![turn(1)], [10, 32, 20, 10]),
        (vec![turn(2)], [22, 10, 10, 20]),
        (vec![turn(3)], [34, 22, 20, 10]),
        (vec![mirror(0)], [32, 10, 10, 20]),
        (vec![mirror(1)], [22, 34, 10, 20]),
        (vec![turn(1), mirror(1)], [10, 22, 20, 10]),
        (vec![mirror(1), turn(1)], [34, 32, 20, 10]),
        (vec![turn(3), mirror(1)], [34, 32, 20, 10]),
    ];
    // What libheif 1.23.6 shows.
    for (number, (before, expected)) in cases.into_iter().enumerate() {
        assert_eq!(visible(&[before, vec![aperture()]].concat()), Some(expected), "{number}");
    }
}

#[test]
fn pq_becomes_srgb() {
    // 148 of 255 is 203 cd/m², the white of graphics.
    let white =
        Hevc { halves: [[148; 3], [0; 3]], colors: (9, 16, 9), depth: 10, ..Hevc::default() };
    let picture = decode_coded(&file(*b"heic", &[white.item()])).expect("made here");
    assert_close(&halves(&picture.image)[0], &[229; 3], 4, "white");
    assert_eq!((picture.cicp.primaries, picture.cicp.transfer), (1, 13));
}

#[test]
fn hevc_is_rejected_if_it_is_switched_off() {
    let off = Unsupported("HEIC is switched off (`heic`)");
    // Whatever the brand says.
    for brand in [*b"heic", *b"avif"] {
        assert_eq!(header(&file(brand, &[Hevc::default().item()]), false), Err(off));
    }
}

#[test]
fn other_sizes_and_formats_than_announced_are_rejected() {
    let hevc = Hevc::default();
    let picture = hevc.encode();
    let item = |size, chroma, depth| {
        let configuration = configuration(chroma, depth, &picture.parameter_sets);
        let item = Item::new(*b"hvc1", units(&picture.slices), size);
        file(*b"heic", &[item.with(*b"hvcC", &configuration)])
    };
    // A few columns and rows of padding are cut off.
    let image = decode_coded(&item((60, 41), 1, 8)).expect("padded").image;
    assert_eq!((image.width(), image.height()), (60, 41));
    assert_halves(&image, "padded");
    for (size, chroma) in [((65, 48), 1), ((64, 49), 1), ((128, 96), 1), ((64, 48), 0)] {
        assert_eq!(decode_coded(&item(size, chroma, 8)).err(), Some(Corrupt), "{size:?} {chroma}");
    }
    let tiny = decode_coded(&item((1, 1), 1, 8)).err();
    assert_eq!(tiny, None, "one block");
    // But not more than a block.
    let luma = [128; 144 * 48];
    let planes = Planes16 { y: &luma, chroma: None, bit_depth: 8 };
    let wide = encode_picture16(144, 48, planes, &EncoderConfig::default()).expect("made here");
    let configuration = configuration(0, 8, &wide.parameter_sets);
    let item = Item::new(*b"hvc1", units(&wide.slices), SIZE).with(*b"hvcC", &configuration);
    assert_eq!(decode_coded(&file(*b"heic", &[item])).err(), Some(Corrupt));
}

#[test]
fn sizes_near_the_largest_number_are_rejected() {
    let picture = Hevc::default().encode();
    let configuration = configuration(1, 8, &picture.parameter_sets);
    for size in [(u32::MAX, 48), (64, u32::MAX), (u32::MAX, u32::MAX)] {
        let found = super::decode(&units(&picture.slices), &configuration, size);
        assert_eq!(found.err(), Some(Corrupt), "{size:?}");
    }
}

#[test]
fn units_take_little_memory() {
    let picture = Hevc::default().encode();
    let mut configuration = configuration(1, 8, &picture.parameter_sets);
    // Empty units are nothing.
    let data = [&[0; 400][..], &units(&picture.slices), &[0; 40]].concat();
    assert!(super::decode(&data, &configuration, SIZE).is_ok());
    // Lengths of one byte.
    configuration[21] = 0xFC;
    let stream = |data: &[u8]| super::byte_stream(data, &configuration).map(|(stream, _)| stream);
    let empty = stream(&vec![0; 100_000]).expect("no units");
    assert!(empty.len() < 1000 && empty.capacity() < 130_000, "{}", empty.capacity());
    assert!(stream(&[1, 0x40].repeat(4096)).is_ok());
    let many = stream(&[1, 0x40].repeat(4097)).err();
    assert_eq!(many, Some(Unsupported("many units in one item")));
    // The header's check counts the copies of the data.
    let mut item = Hevc::default().item();
    item.data.resize(1 << 20, 0);
    let memory = header(&file(*b"heic", &[item]), true).expect("made here").decode_memory();
    assert!(memory > 3 << 20, "{memory}");
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("made here");
    (0..text.len()).step_by(2).map(digit).collect()
}

/// Pictures of 16 × 16 pixels with the usual halves. Made by x265 4.3:
/// `pillow_heif.from_pillow(image).save("it.heic", quality=90, chroma=422)`; the configuration from `hvcC`,
/// and the data from `mdat`.
const BY_X265: [(&str, &str); 2] = [
    (
        "0104080000009d38000000001ef000fcfef8f800000f03600001001740010c01ffff0408000003009d3800000300001eba02\
         4061000100284201010408000003009d3800000300001eb020810596eaae9ae6e021a0c08000000c80000003008462000100\
         064401c173c189",
        "000000972801af06321ad960805d92161a2f956ffffbe5fd97a0e8391d5d2caa5f627ffff6dc053fc4e0b1920dab5fbcfbb0\
         ecdc35b5dd4bcd8d90a8046278ae7cd46315c6c5de6b03dd8a2b191ede9871241bb3f21a6d73d415dacdf34a165e80d32c7e\
         56de977986d5887bce1897102f7cb7bc9e07c4af6e5b620ee6a00e0a7ac8c91b9a327a24a940f00561222305c83e80c21887\
         6545a64cb8",
    ),
    (
        "0104080000009e38000000001ef000fcfff8f800000f03600001001740010c01ffff0408000003009e3800000300001eba02\
         40610001002a4201010408000003009e3800000300001e90041020b2dd55d35cdc0434181000000301900000030010806200\
         0100084401c17318301890",
        "000000722801af06321aa41f805d41c576f40bffff956fd0f68a9fe6f89c77def3dfffb494baf37cbb01ad1cfbcfbace9ac2\
         ba896a0c27d072ed97b1d500b91afcecc7c288ff1709d09dea21a1832fe169584366f67db6a2bffbe5b95898976997cfec4c\
         5bd750104050eea7613401f7fcd29ea4edc0",
    ),
];

#[test]
fn half_and_full_chroma_are_decoded() {
    for (chroma, (configuration, data)) in [2, 3].into_iter().zip(BY_X265) {
        let item = Item::new(*b"hvc1", hex(data), (16, 16)).with(*b"hvcC", &hex(configuration));
        let image = decoded(&[item]);
        let found = halves(&image);
        assert_close(&found.concat(), &[RED, BLUE].concat(), 12, &format!("chroma {chroma}"));
    }
}

#[test]
fn damaged_files_never_panic() {
    let alpha = Hevc { gray: true, ..Hevc::default() };
    let bytes = file(*b"heic", &[Hevc::default().item(), alpha.item().alpha_of(1)]);
    for part in 0..40 {
        assert!(decode_coded(&bytes[..bytes.len() * part / 40]).is_err(), "{part}/40");
    }
    for round in 0..400_usize {
        let mut damaged = bytes.clone();
        // Knuth's multiplicative hash spreads the flipped bits over the file.
        let bit = round * 2_654_435_761 % (bytes.len() * 8);
        damaged[bit / 8] ^= 1 << (bit % 8);
        let _ = header(&damaged, true);
        let _ = decode_coded(&damaged);
    }
}
