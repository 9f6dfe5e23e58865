//! The chunks of a PNG (PNG, third edition, section 5.3).

use flate2::Crc;

/// The length of the signature before the first chunk, in bytes.
pub(super) const SIGNATURE: usize = 8;

/// A chunk with its length, kind and checksum.
#[derive(Clone, Copy)]
pub(super) struct Chunk<'a> {
    pub kind: [u8; 4],
    pub content: &'a [u8],
    pub whole: &'a [u8],
}

impl<'a> Chunk<'a> {
    /// The first chunk and the bytes behind it; `None` if it is not whole.
    pub fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let content = rest.get(..length)?;
        let (whole, tail) = bytes.split_at_checked(length.checked_add(12)?)?;
        Some((Self { kind: *kind, content, whole }, tail))
    }

    pub fn has_valid_sum(&self) -> bool {
        self.whole.ends_with(&checksum(self.kind, self.content).to_be_bytes())
    }
}

/// The checksum of a chunk.
pub(super) fn checksum(kind: [u8; 4], content: &[u8]) -> u32 {
    let mut sum = Crc::new();
    sum.update(&kind);
    sum.update(content);
    sum.sum()
}
