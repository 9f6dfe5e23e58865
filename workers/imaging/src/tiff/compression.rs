//! Undoes the compression of one chunk.

use std::io::{ErrorKind, Read};

use flate2::read::ZlibDecoder;
use safelight_domain::Failure;
use weezl::{BitOrder, LzwStatus, decode::Decoder as LzwDecoder};

use super::{
    directory::{Directory, tag},
    fax::{self, FaxCoding},
};
use crate::failure::{damaged, unsupported};

/// The compressions that are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Fax(FaxCoding),
    Lzw,
    Jpeg,
    Deflate,
    PackBits,
}

impl Compression {
    pub fn read(page: &Directory<'_>) -> Result<Self, Failure> {
        let two_dimensional = page.value(tag::T4_OPTIONS).unwrap_or(0) & 1 == 1;
        let name = match page.value(tag::COMPRESSION).unwrap_or(1) {
            1 => return Ok(Self::None),
            2 => return Ok(Self::Fax(FaxCoding::Rle)),
            3 => return Ok(Self::Fax(FaxCoding::Group3 { two_dimensional })),
            4 => return Ok(Self::Fax(FaxCoding::Group4)),
            5 => return Ok(Self::Lzw),
            7 => return Ok(Self::Jpeg),
            8 | 32946 => return Ok(Self::Deflate),
            32773 => return Ok(Self::PackBits),
            6 => "old-style JPEG",
            32766 => "NeXT",
            32771 => "word-aligned fax",
            32809 => "ThunderScan",
            32895..=32898 => "IT8",
            32908 | 32909 => "Pixar",
            34661 => "JBIG",
            34676 | 34677 => "SGI LogLuv",
            33003 | 33004 | 33005 | 34712 => "JPEG 2000",
            34887 => "LERC",
            34925 => "LZMA",
            34926 | 50000 => "Zstandard",
            34927 | 50001 => "WebP",
            50002 | 52546 => "JPEG XL",
            other => return Err(unsupported("TIFF", &format!("compression {other}"))),
        };
        Err(unsupported("TIFF", &format!("{name} compression")))
    }
}

/// Fills `rows` with the bytes of a chunk that JPEG does not compress. It is damaged if it has too few.
pub(super) fn unpack(
    compression: Compression,
    low_bit_first: bool,
    width: u32,
    stored: &[u8],
    rows: &mut [u8],
) -> Result<(), Failure> {
    let reversed: Vec<u8>;
    let stored = if low_bit_first {
        reversed = stored.iter().map(|byte| byte.reverse_bits()).collect();
        &reversed
    } else {
        stored
    };
    match compression {
        Compression::None => {
            let bytes = stored.get(..rows.len()).ok_or_else(damaged)?;
            rows.copy_from_slice(bytes);
            Ok(())
        }
        Compression::Fax(coding) => fax::decode(stored, coding, width, rows),
        Compression::Lzw => lzw(stored, rows),
        Compression::Deflate => deflate(stored, rows),
        Compression::PackBits => pack_bits(stored, rows).ok_or_else(damaged),
        Compression::Jpeg => Err(damaged()),
    }
}

fn lzw(stored: &[u8], rows: &mut [u8]) -> Result<(), Failure> {
    // Before TIFF 6.0, libtiff wrote the low bit first and changed the width of codes one code later. The
    // first code is always 256, so that the first bytes tell the two apart.
    let is_old = matches!(stored, [0, second, ..] if second & 1 == 1);
    let mut decoder = if is_old {
        LzwDecoder::new(BitOrder::Lsb, 8)
    } else {
        LzwDecoder::with_tiff_size_switch(BitOrder::Msb, 8)
    };
    let (mut read, mut written) = (0, 0);
    while written < rows.len() {
        let result = decoder.decode_bytes(&stored[read..], &mut rows[written..]);
        read += result.consumed_in;
        written += result.consumed_out;
        match result.status {
            Ok(LzwStatus::Ok) if result.consumed_in + result.consumed_out > 0 => {}
            _ if written == rows.len() => {}
            _ => return Err(damaged()),
        }
    }
    Ok(())
}

fn deflate(stored: &[u8], rows: &mut [u8]) -> Result<(), Failure> {
    let mut decoder = ZlibDecoder::new(stored);
    decoder.read_exact(rows).map_err(|_| damaged())?;
    // Reading on checks the checksum. A stream without its last bytes has all pixels.
    match decoder.read(&mut [0]) {
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(damaged()),
        _ => Ok(()),
    }
}

/// TIFF 6.0, section 9.
fn pack_bits(mut stored: &[u8], rows: &mut [u8]) -> Option<()> {
    let mut written = 0;
    while written < rows.len() {
        let (&length, rest) = stored.split_first()?;
        let left = &mut rows[written..];
        match length {
            0..128 => {
                let count = usize::from(length) + 1;
                // A run may end after the chunk.
                let bytes = rest.get(..count.min(left.len()))?;
                left[..bytes.len()].copy_from_slice(bytes);
                written += bytes.len();
                stored = rest.get(count..).unwrap_or_default();
            }
            128 => stored = rest,
            129.. => {
                let (&byte, rest) = rest.split_first()?;
                let count = (257 - usize::from(length)).min(left.len());
                left[..count].fill(byte);
                written += count;
                stored = rest;
            }
        }
    }
    Some(())
}
