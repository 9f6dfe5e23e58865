//! Whether a JPEG is all there.

/// Whether the segments and scans of a JPEG run up to its end marker. Bytes after it are ignored:
/// cameras append previews and short films.
///
/// Source: ISO/IEC 10918-1, annex B (markers, segment lengths, byte stuffing).
pub(super) fn is_complete(bytes: &[u8]) -> bool {
    const EOI: u8 = 0xD9;
    let mut at = 2; // after SOI
    loop {
        // In a scan `FF` stands alone only before a marker; elsewhere a marker is due at once.
        // Looking for the next one skips both entropy-coded data and stray bytes.
        let Some(skipped) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xFF))
        else {
            return false;
        };
        at += skipped + 1;
        match bytes.get(at) {
            None => return false,
            Some(&EOI) => return true,
            // Stuffing, restart markers, TEM and SOI carry no length.
            Some(0x00 | 0x01 | 0xD0..=0xD8) => at += 1,
            // A fill byte: the marker's code is still to come.
            Some(0xFF) => {}
            Some(_) => {
                let Some(&[high, low]) = bytes.get(at + 1..at + 3) else { return false };
                at += 1 + usize::from(u16::from_be_bytes([high, low]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_marker_outside_segments_counts() {
        let cases: [(&[u8], bool); 7] = [
            (b"\xFF\xD8\xFF\xD9", true),
            (b"\xFF\xD8\xFF\xD9 and a film", true),
            (b"\xFF\xD8", false),
            // An end marker inside a segment (an embedded preview's) is not the picture's.
            (b"\xFF\xD8\xFF\xE1\0\x04\xFF\xD9", false),
            (b"\xFF\xD8\xFF\xE1\0\x04\xFF\xD9\xFF\xFF\xD9", true),
            // Stuffing and restarts belong to the scan.
            (b"\xFF\xD8\xFF\xDA\0\x02ab\xFF\0c\xFF\xD3d\xFF\xD9", true),
            (b"\xFF\xD8\xFF\xDA\0\x02ab\xFF\0c\xFF\xD3d\xFF", false),
        ];
        for (bytes, complete) in cases {
            assert_eq!(is_complete(bytes), complete, "{bytes:x?}");
        }
    }
}
