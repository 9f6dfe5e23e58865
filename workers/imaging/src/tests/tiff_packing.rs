//! The compressions of the TIFFs that the tests make.

use std::io::Write;

use fax::{Color as FaxColor, VecWriter, encoder::Encoder as FaxEncoder};
use flate2::{Compression, write::ZlibEncoder};
use weezl::{BitOrder, encode::Encoder as LzwEncoder};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    None,
    Lzw,
    /// The low bit first, as before TIFF 6.0.
    OldLzw,
    Deflate,
    PackBits,
    Group4,
    Jpeg {
        is_ycbcr: bool,
        separate_tables: bool,
    },
}

impl Packing {
    /// The bytes of a strip or tile whose rows have `width` pixels. Those of a JPEG are not packed again.
    pub fn pack(self, raw: Vec<u8>, width: u32) -> Vec<u8> {
        match self {
            Self::Lzw => {
                LzwEncoder::with_tiff_size_switch(BitOrder::Msb, 8).encode(&raw).expect("LZW")
            }
            Self::OldLzw => LzwEncoder::new(BitOrder::Lsb, 8).encode(&raw).expect("LZW"),
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
                encoder.write_all(&raw).expect("memory");
                encoder.finish().expect("memory")
            }
            Self::PackBits => {
                // Literals of up to 100 bytes, and runs where a row begins with one.
                let literal = |part: &[u8]| [&[part.len() as u8 - 1], part].concat();
                raw.chunks(100).flat_map(literal).collect()
            }
            Self::Group4 => group4(&raw, width),
            _ => raw,
        }
    }
}

/// The tables of a JPEG as a stream of their own, and the JPEG without them.
pub fn split_tables(jpeg: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut tables, mut rest) = (vec![0xFF, 0xD8], vec![0xFF, 0xD8]);
    let mut at = 2;
    while jpeg[at + 1] != 0xDA {
        let length = 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
        let is_table = matches!(jpeg[at + 1], 0xDB | 0xC4);
        if is_table { &mut tables } else { &mut rest }.extend_from_slice(&jpeg[at..at + length]);
        at += length;
    }
    tables.extend_from_slice(&[0xFF, 0xD9]);
    rest.extend_from_slice(&jpeg[at..]);
    (tables, rest)
}

fn group4(raw: &[u8], width: u32) -> Vec<u8> {
    let width = u16::try_from(width).expect("a short row");
    let mut encoder = FaxEncoder::new(VecWriter::new());
    for row in raw.chunks(usize::from(width).div_ceil(8)) {
        let pixels = (0..usize::from(width)).map(|x| {
            if row[x / 8] >> (7 - x % 8) & 1 == 1 { FaxColor::Black } else { FaxColor::White }
        });
        encoder.encode_line(pixels, width).expect("memory");
    }
    encoder.finish().expect("memory").finish()
}
