//! BMP in its variants, made here.

use super::{
    containers::{PALETTE, assert_quarters_of, index},
    *,
};

struct Bmp {
    header: u32,
    bits: u16,
    compression: u32,
    colors_used: u32,
    /// Colors that the file has.
    colors: usize,
    masks: Vec<u32>,
    /// Where the pixels are said to be, relative to where they are.
    offset: Option<u32>,
    is_top_down: bool,
    pixels: Vec<u8>,
}

impl Bmp {
    /// Quarters of 96 × 64 pixels.
    fn new(bits: u16, put: impl Fn(&mut Vec<u8>, u32, u32)) -> Self {
        let mut pixels = Vec::new();
        for y in (0..64).rev() {
            (0..96).for_each(|x| put(&mut pixels, x, y));
        }
        let colors = if bits <= 8 { 1 << bits } else { 0 };
        Self {
            header: 40,
            bits,
            compression: 0,
            colors_used: 0,
            colors,
            masks: Vec::new(),
            offset: None,
            is_top_down: false,
            pixels,
        }
    }

    fn build(&self) -> Vec<u8> {
        let mut header = self.header.to_le_bytes().to_vec();
        if self.header == 12 {
            header.extend_from_slice(&[96, 0, 64, 0, 1, 0]);
            header.extend_from_slice(&self.bits.to_le_bytes());
        } else {
            let height: i32 = if self.is_top_down { -64 } else { 64 };
            header.extend_from_slice(&96_u32.to_le_bytes());
            header.extend_from_slice(&height.to_le_bytes());
            header.extend_from_slice(&1_u16.to_le_bytes());
            header.extend_from_slice(&self.bits.to_le_bytes());
            for field in [self.compression, 0, 0, 0, self.colors_used, 0] {
                header.extend_from_slice(&field.to_le_bytes());
            }
            header.truncate(self.header as usize);
        }
        header.extend(self.masks.iter().flat_map(|mask| mask.to_le_bytes()));
        header.resize(header.len().max(self.header as usize), 0);
        for at in 0..self.colors {
            let [red, green, blue] = PALETTE[at % 4];
            header.extend_from_slice(&[blue, green, red]);
            header.extend((self.header != 12).then_some(0));
        }
        let start = 14 + header.len() as u32;
        let mut bytes = b"BM\0\0\0\0\x07\0\x09\0".to_vec();
        bytes.extend_from_slice(&self.offset.unwrap_or(start).to_le_bytes());
        bytes.append(&mut header);
        bytes.extend_from_slice(&self.pixels);
        bytes
    }
}

fn indexed() -> Bmp {
    Bmp::new(8, |to, x, y| to.push(index(x, y)))
}

/// 32 bits, of which the highest eight are the given alpha.
fn deep(alpha: u8) -> Bmp {
    Bmp::new(32, move |to, x, y| {
        let [red, green, blue] = quarters(x, y).0;
        to.extend_from_slice(&[blue, green, red, alpha]);
    })
}

#[test]
fn bmp_headers_of_every_kind() {
    let rgb_masks = vec![0x00FF_0000, 0x0000_FF00, 0x0000_00FF];
    let with_alpha = [rgb_masks.clone(), vec![0xFF00_0000]].concat();
    let sixteen = |masks: Vec<u32>, shifts: [u32; 3], levels: [u32; 3]| {
        let bmp = Bmp::new(16, move |to, x, y| {
            let channels = quarters(x, y).0;
            let pixel = (0..3).map(|at| u32::from(channels[at] > 0) * (levels[at] << shifts[at]));
            to.extend_from_slice(&(pixel.sum::<u32>() as u16).to_le_bytes());
        });
        Bmp { compression: if masks.is_empty() { 0 } else { 3 }, masks, ..bmp }
    };
    // One bit of alpha, then five of each color.
    let fifteen = |alpha: u8| {
        let masks = vec![0x7C00, 0x03E0, 0x001F, 0x8000];
        let mut bmp = Bmp { header: 124, ..sixteen(masks, [10, 5, 0], [31; 3]) };
        bmp.pixels.as_chunks_mut::<2>().0.iter_mut().for_each(|pixel| pixel[1] |= alpha << 7);
        bmp
    };
    let nibbles = Bmp {
        pixels: (0..64).rev().flat_map(|y| (0..48).map(move |x| index(2 * x, y) * 0x11)).collect(),
        ..Bmp::new(4, |_, _, _| ())
    };
    let cases = [
        ("OS/2 1", Bmp { header: 12, ..indexed() }),
        ("OS/2 1, short palette", Bmp { header: 12, colors: 4, ..indexed() }),
        ("OS/2 2", Bmp { header: 64, ..indexed() }),
        ("OS/2 2, short header", Bmp { header: 16, ..indexed() }),
        ("version 5", Bmp { header: 124, ..indexed() }),
        ("four bits", nibbles),
        ("too many colors", Bmp { colors: 300, colors_used: 300, ..indexed() }),
        ("few colors", Bmp { colors: 4, colors_used: 4, ..indexed() }),
        ("offset 0", Bmp { offset: Some(0), ..indexed() }),
        ("offset in the palette", Bmp { offset: Some(100), ..indexed() }),
        ("offset in the header", Bmp { offset: Some(20), ..deep(0) }),
        ("32 bits", deep(0)),
        ("32 bits, unused bits set", deep(99)),
        ("alpha 0", Bmp { header: 56, compression: 3, masks: with_alpha.clone(), ..deep(0) }),
        ("alpha 255", Bmp { header: 108, compression: 3, masks: with_alpha, ..deep(255) }),
        ("masks after the header", Bmp { compression: 3, masks: rgb_masks, ..deep(0) }),
        ("555", sixteen(Vec::new(), [10, 5, 0], [31; 3])),
        ("1555, alpha 0", fifteen(0)),
        ("1555, alpha 1", fifteen(1)),
        ("565", sixteen(vec![0xF800, 0x07E0, 0x001F], [11, 5, 0], [31, 63, 31])),
    ];
    for (what, bmp) in cases {
        assert_quarters_of(&bmp.build(), what);
    }
    let mut upside_down = indexed();
    upside_down.pixels = (0..64).flat_map(|y| (0..96).map(move |x| index(x, y))).collect();
    assert_quarters_of(&Bmp { is_top_down: true, ..upside_down }.build(), "top down");
}

#[test]
fn bmp_alpha_counts_if_any_is_there() {
    let masks = vec![0x00FF_0000, 0x0000_FF00, 0x0000_00FF, 0xFF00_0000];
    let bytes = Bmp { header: 56, compression: 3, masks, ..deep(128) }.build();
    let image = render_one(&bytes, 96, PresetFormat::Png).1.to_rgba8();
    assert_eq!(image.get_pixel(5, 5).0, [255, 0, 0, 128]);
    // A single bit: the left half is opaque.
    let half = Bmp::new(16, |to, x, _| to.extend_from_slice(&[0, 0x7C | u8::from(x < 48) << 7]));
    let masks = vec![0x7C00, 0x03E0, 0x001F, 0x8000];
    let bytes = Bmp { header: 124, compression: 3, masks, ..half }.build();
    let image = render_one(&bytes, 96, PresetFormat::Png).1.to_rgba8();
    assert_eq!([5, 90].map(|x| image.get_pixel(x, 5).0[3]), [255, 0]);
}

#[test]
fn bmp_run_lengths() {
    let row = |y: u32| match y {
        0..32 => [48, 0, 48, 1],
        _ => [48, 2, 48, 3],
    };
    let runs = |double: bool| {
        let bytes = (0..64).rev().flat_map(move |y| {
            let [count, left, count2, right] = row(y);
            let index = |index: u8| if double { index * 0x11 } else { index };
            [count, index(left), count2, index(right), 0, 0]
        });
        bytes.chain([0, 1]).collect::<Vec<u8>>()
    };
    let eight = Bmp { compression: 1, pixels: runs(false), ..indexed() };
    assert_quarters_of(&eight.build(), "8 bits");
    let four = Bmp { compression: 2, pixels: runs(true), ..Bmp::new(4, |_, _, _| ()) };
    assert_quarters_of(&four.build(), "4 bits");
    // The palette is shorter than the header says, and the pixels are where the file says.
    let mut pixels = runs(false);
    pixels.resize(2000, 0);
    let short = Bmp { colors: 4, compression: 1, pixels, ..indexed() };
    assert_quarters_of(&short.build(), "8 bits, short palette");
    let unknown = Bmp { offset: Some(0), compression: 1, pixels: runs(false), ..indexed() };
    assert_quarters_of(&unknown.build(), "8 bits, offset 0");
    // Rows are missing, and no end says that they are meant to be.
    let cut = Bmp { pixels: runs(false)[..30 * 6].to_vec(), ..eight };
    assert_eq!(failures(&cut.build()), [None, Some(ErrorCode::CorruptImage)]);
    // Plain pixels that are missing.
    let mut short = indexed();
    short.pixels.truncate(96 * 63);
    assert_eq!(failures(&short.build()), [None, Some(ErrorCode::CorruptImage)]);
}

#[test]
fn bmp_variants_without_decoder_are_named() {
    for (compression, name) in [(4, "JPEG"), (5, "PNG"), (11, "CMYK")] {
        let failure = inspect(&Bmp { compression, ..deep(0) }.build(), LIMITS).expect_err(name);
        assert_eq!(failure.code, ErrorCode::UnsupportedFormat);
        assert!(failure.message.contains(name), "{failure}");
    }
}

// PNG
