//! Makes PNGs acceptable that libpng shows and the crate `png` rejects, or reads otherwise: chunk by chunk,
//! before they are decoded.

use std::borrow::Cow;

use safelight_domain::{ErrorCode, Failure};

use super::chunk::{Chunk, SIGNATURE, checksum};
use crate::failure::damaged;

/// The chunk that ends a PNG, with its length and checksum.
const END: &[u8] = b"\0\0\0\0IEND\xAE\x42\x60\x82";

const PALETTE: u8 = 3;

/// What the first chunk says.
#[derive(Clone, Copy)]
struct ImageHeader {
    depth: u8,
    color: u8,
}

/// What to do with a chunk.
enum Verdict {
    Keep,
    Drop,
    Replace(Vec<u8>),
}

/// The picture without what hinders the decoder; unchanged if nothing does.
///
/// - The animation of an APNG is dropped: its still picture is shown, whether its frames are valid or not.
/// - Only as many bits of a transparent color count as the depth has (PNG 3, section 11.3.1.1).
/// - A picture may end after its pixels. A chunk behind them may be cut short.
/// - A palette of an impossible length is ignored where it is only a suggestion.
pub(super) fn repaired(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Failure> {
    let mut repaired: Option<Vec<u8>> = None;
    let mut rest = bytes.get(SIGNATURE..).ok_or_else(damaged)?;
    let mut header = None;
    let mut has_pixels = false;
    let mut has_end = false;
    while let Some((chunk, tail)) = Chunk::split(rest) {
        if chunk.kind == *b"CgBI" {
            let message = "a PNG in the form of Apple's developer tools (CgBI) cannot be decoded";
            return Err(Failure::new(ErrorCode::UnsupportedFormat, message));
        }
        if let (b"IHDR", [.., depth, color, _, _, _]) = (&chunk.kind, chunk.content) {
            header = Some(ImageHeader { depth: *depth, color: *color });
        }
        has_pixels |= chunk.kind == *b"IDAT";
        has_end = chunk.kind == *b"IEND";
        let before = &bytes[..bytes.len() - rest.len()];
        match judge(chunk, header)? {
            Verdict::Keep => repaired.iter_mut().for_each(|to| to.extend_from_slice(chunk.whole)),
            Verdict::Drop => {
                repaired.get_or_insert_with(|| before.to_vec());
            }
            Verdict::Replace(with) => {
                repaired.get_or_insert_with(|| before.to_vec()).extend_from_slice(&with);
            }
        }
        rest = tail;
        if has_end {
            break;
        }
    }
    // Pixels that are cut short are left to the decoder, which rejects them.
    let cuts_pixels = rest.get(4..8) == Some(b"IDAT");
    if has_pixels && !has_end && !cuts_pixels {
        let before = &bytes[..bytes.len() - rest.len()];
        repaired.get_or_insert_with(|| before.to_vec()).extend_from_slice(END);
    }
    Ok(repaired.map_or(Cow::Borrowed(bytes), Cow::Owned))
}

fn judge(chunk: Chunk<'_>, header: Option<ImageHeader>) -> Result<Verdict, Failure> {
    match (&chunk.kind, header) {
        (b"acTL" | b"fcTL" | b"fdAT", _) => Ok(Verdict::Drop),
        (b"PLTE", Some(header)) => {
            let length = chunk.content.len();
            match header.color {
                _ if length > 0 && length <= 768 && length.is_multiple_of(3) => Ok(Verdict::Keep),
                // As in libpng.
                PALETTE => Err(damaged()),
                _ => Ok(Verdict::Drop),
            }
        }
        (b"tRNS", Some(ImageHeader { depth, color: 0 | 2 })) => {
            let mask = if depth < 16 { (1_u16 << depth) - 1 } else { u16::MAX };
            let samples = chunk.content.as_chunks::<2>().0.iter();
            let masked: Vec<u8> = samples
                .flat_map(|sample| (u16::from_be_bytes(*sample) & mask).to_be_bytes())
                .collect();
            if masked == chunk.content || !chunk.has_valid_sum() {
                return Ok(Verdict::Keep);
            }
            let length = chunk.whole.get(..4).unwrap_or_default();
            let sum = checksum(chunk.kind, &masked).to_be_bytes();
            Ok(Verdict::Replace([length, &chunk.kind, &masked, &sum].concat()))
        }
        _ => Ok(Verdict::Keep),
    }
}
