//! Rewrites what is odd in a JPEG, but costs no pixel, so that libjpeg-turbo has nothing to say about it.
//!
//! libjpeg-turbo reports only its first warning, and a warning in the header ends the decoding. If odd pictures
//! were told by their warnings, a harmless one would hide a harmful one, or lead to a decoder that notices less.
//! After this rewriting, every warning but one means that pixels are missing or wrong (see
//! [`decode_error`](super::decode_error)).
//!
//! | oddity | warning that it would cause | why it costs no pixel | becomes |
//! |---|---|---|---|
//! | bytes between two segments | "extraneous bytes before marker" | they belong to no segment | removed |
//! | a version of JFIF other than 1 | "unknown JFIF revision number" | it says nothing about the coding | 1.01 |
//! | an unknown transform of Adobe | "Unknown Adobe color transform code" | YCbCr is meant, as all decoders assume | 1, or 2 with black |
//! | Ss, Se, Ah, Al in a sequential scan | "Invalid SOS parameters" | they have one possible value (T.81, table B.3); Samsung writes zeros | that value |
//! | parts of a profile that do not fit | "bad ICC marker" | this crate reads profiles itself | removed |
//! | a scan of coefficients that are known | "Inconsistent progression sequence" | it says the same again | removed |
//! | AC coefficients before DC | "Inconsistent progression sequence" | they are independent of each other | sorted |
//! | no end marker after the last scan | "Premature end of JPEG file" | all coefficients are there; panoramas of Samsung | added |
//!
//! Source: ISO/IEC 10918-1 (T.81), annexes B and G; the warnings are those of libjpeg-turbo's `jerror.h`.

use std::{borrow::Cow, ops::Range};

use memchr::{memchr, memmem};
use safelight_domain::{ErrorCode, Failure};

use super::{
    markers::{APP0, APP2, APP14, EOI, Header, ICC_PREFIX, Part, Parts, SOS, is_whole_profile},
    padding::{is_padding, zeros_before},
    progress::{Novelty, Progress, ScanHeader},
};
use crate::failure::damaged;

/// Segments of a picture that are looked at: pictures have a few dozen, and each may need an edit that takes memory.
const MAX_SEGMENTS: usize = 1 << 16;

/// The end of the trailer that Samsung's cameras append.
const SAMSUNG_END: &[u8] = b"SEFT";

/// The longest name of a block in that trailer, in bytes.
const MAX_BLOCK_NAME: usize = 64;

/// The bytes of one picture, from SOI to EOI, without oddities. Fails if data is missing that libjpeg-turbo
/// would not miss.
pub(super) fn tidy<'a>(bytes: &'a [u8], header: &Header) -> Result<Cow<'a, [u8]>, Failure> {
    let bytes = without_samsung_trailer(bytes);
    let mut edits = Edits::new(bytes);
    let mut progress = Progress::new(header);
    let mut profile = Vec::new();
    let mut sort = false;
    let mut end = None;
    let mut parts = Parts::new(bytes);
    let mut segments = 0;
    while let Some(part) = parts.next() {
        segments += 1;
        if segments > MAX_SEGMENTS {
            return Err(damaged());
        }
        if bytes[part.stray.clone()].iter().any(|&byte| byte != 0xFF) {
            edits.replace(part.stray.clone(), &[]);
        }
        match part.marker {
            APP0 => tidy_jfif(&mut edits, &part),
            APP14 => tidy_adobe(&mut edits, &part, header.components),
            APP2 if bytes[part.body.clone()].starts_with(ICC_PREFIX) => {
                profile.push(part);
            }
            SOS => {
                let data = parts.skip_scan();
                let Some(scan) = ScanHeader::read(&bytes[part.body.clone()], header) else {
                    continue;
                };
                if !header.is_progressive() && !header.is_lossless() {
                    let end = part.body.end;
                    edits.replace(end - 3..end, &[0, 63, 0]);
                }
                match progress.advance(&scan) {
                    Novelty::New => {}
                    Novelty::BeforeDc => sort = true,
                    Novelty::Known => edits.replace(part.whole.start..data.end, &[]),
                }
            }
            EOI => end = Some(part.whole.end),
            _ => {}
        }
    }
    remove_unless_whole(&mut edits, profile);
    if !progress.has_all_components() {
        return Err(damaged());
    }
    if end.is_none() {
        // The decoder of arithmetic coding does not notice where data ends.
        if !parts.is_at_end() || !progress.is_complete() || header.is_arithmetic() {
            let message = "the JPEG ends before its end marker";
            return Err(Failure::new(ErrorCode::CorruptImage, message));
        }
        // Zeros at the end of a file may be what was not written of it, so none of them counts as data.
        let zeros = zeros_before(bytes);
        edits.replace(bytes.len() - zeros..bytes.len(), &[]);
    }
    // Not one of the edits: the last scan may be removed, with all edits in it.
    let missing_end: &[u8] = if end.is_none() { &[0xFF, EOI] } else { &[] };
    let tidied = edits.apply(end.unwrap_or(bytes.len()), missing_end);
    Ok(if sort {
        super::progress::sorted(&tidied, header).map_or(tidied, Cow::Owned)
    } else {
        tidied
    })
}

/// Removes `count` unused zeros before each restart marker and each segment between scans where they may be padding. If
/// they were data, the decoder notices that they are missing.
pub(super) fn without_padding(tidied: &[u8], count: usize) -> Vec<u8> {
    // There may be too many places for a list of them.
    let mut kept = Vec::with_capacity(tidied.len());
    let mut from = 0;
    let mut parts = Parts::new(tidied);
    while let Some(part) = parts.next() {
        if part.marker != SOS {
            continue;
        }
        let data = parts.skip_scan();
        let mut at = data.start;
        // A marker that ends the data is one of another segment, unless it is the end of the picture.
        while let Some(found) = tidied.get(at..).and_then(|rest| memchr(0xFF, rest)) {
            let marker = at + found;
            let code = tidied.get(marker + 1).copied().unwrap_or(EOI);
            if code != 0 && code != EOI && is_padding(zeros_before(&tidied[at..marker]), count) {
                kept.extend_from_slice(&tidied[from..marker - count]);
                from = marker;
            }
            at = marker + 2;
            if marker >= data.end {
                break;
            }
        }
    }
    kept.extend_from_slice(&tidied[from..]);
    kept
}

/// Removes the parts of a profile if they do not fit.
fn remove_unless_whole(edits: &mut Edits<'_>, profile: Vec<Part>) {
    let segments: Vec<&[u8]> = profile.iter().map(|part| &edits.bytes[part.body.clone()]).collect();
    if !is_whole_profile(&segments) {
        for part in profile {
            edits.replace(part.whole, &[]);
        }
    }
}

fn tidy_jfif(edits: &mut Edits<'_>, part: &Part) {
    let at = part.body.start;
    if part.body.len() >= 14 && edits.bytes[at..].starts_with(b"JFIF\0") && edits.bytes[at + 5] != 1
    {
        edits.replace(at + 5..at + 7, &[1, 1]);
    }
}

fn tidy_adobe(edits: &mut Edits<'_>, part: &Part, components: u8) {
    let at = part.body.start + 11;
    if part.body.len() < 12 || !edits.bytes[part.body.start..].starts_with(b"Adobe") {
        return;
    }
    let transformed = if components == 4 { 2 } else { 1 };
    if edits.bytes[at] != 0 {
        edits.replace(at..at + 1, &[transformed]);
    }
}

/// Samsung's cameras write blocks after the picture, each with a type, the length of its name, and the name. In
/// panoramas the first block follows the scan immediately, without EOI.
fn without_samsung_trailer(bytes: &[u8]) -> &[u8] {
    if !bytes.ends_with(SAMSUNG_END) {
        return bytes;
    }
    let Some(scan) = Parts::new(bytes).find(|part| part.marker == SOS) else { return bytes };
    let from = scan.whole.end;
    let is_block = |at: &usize| {
        let block = &bytes[from + at..];
        let Some(&[_, _, _, _, length, 0, 0, 0]) = block.first_chunk() else { return false };
        let length = usize::from(length);
        let name = block.get(8..8 + length).unwrap_or_default();
        (4..=MAX_BLOCK_NAME).contains(&length)
            && name.len() == length
            && name.iter().all(u8::is_ascii_graphic)
    };
    let first = memmem::find_iter(&bytes[from..], &[0, 0]).find(is_block);
    first.map_or(bytes, |at| &bytes[..from + at])
}

/// Replacements of parts of a picture.
struct Edits<'a> {
    bytes: &'a [u8],
    edits: Vec<(Range<usize>, Vec<u8>)>,
}

impl<'a> Edits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, edits: Vec::new() }
    }

    /// Does nothing if these bytes are there already.
    fn replace(&mut self, range: Range<usize>, by: &[u8]) {
        if self.bytes.get(range.clone()).is_some_and(|bytes| bytes != by) {
            self.edits.push((range, by.to_vec()));
        }
    }

    /// The bytes up to `end`, with all replacements, then `tail`; a copy only if it is needed.
    fn apply(mut self, end: usize, tail: &[u8]) -> Cow<'a, [u8]> {
        if self.edits.is_empty() && tail.is_empty() {
            return Cow::Borrowed(&self.bytes[..end]);
        }
        self.edits.sort_by_key(|(range, _)| range.start);
        let mut edited = Vec::with_capacity(end + tail.len());
        let mut at = 0;
        for (range, by) in self.edits {
            // An edit within a part that was removed does not matter.
            if range.start >= at {
                edited.extend_from_slice(&self.bytes[at..range.start]);
                edited.extend(by);
                at = range.end;
            }
        }
        edited.extend_from_slice(&self.bytes[at..end]);
        edited.extend_from_slice(tail);
        Cow::Owned(edited)
    }
}
