//! Damage in scans, as it happens to files: holes, lost and repeated blocks, transfers in text mode, flipped bits.

use super::*;

/// Damaged variants of a picture.
fn damaged(plain: &[u8], at: usize, length: usize) -> Vec<(&'static str, Vec<u8>)> {
    let (block, next) = (at..at + length, at + length..at + 2 * length);
    vec![
        ("a hole of zeros", spliced(plain, block.clone(), &vec![0; length])),
        ("a lost block", spliced(plain, block.clone(), &[])),
        ("a repeated block", inserted(plain, at, &plain[block.clone()])),
        (
            "swapped blocks",
            [&plain[..at], &plain[next.clone()], &plain[block], &plain[next.end..]].concat(),
        ),
    ]
}

/// A decoder that lost its way is noticed unless it ends at the right byte by chance: in the 4:2:0 picture, zeros take
/// nearly as many bytes for a block as the picture does.
#[test]
fn damage_in_a_scan_is_noticed() {
    for (coding, plain) in codings() {
        let data = longest_data(&plain);
        let length = data.len() / 12;
        let (mut missed, mut tried) = (Vec::new(), 0);
        for part in 0..10 {
            let at = data.start + data.len() * part / 12 + 3;
            for (what, damaged) in damaged(&plain, at, length) {
                tried += 1;
                if decoded(&damaged).is_ok() {
                    missed.push((what, part));
                }
            }
        }
        println!("{coding}: {missed:?} of {tried}");
        assert!(4 * missed.len() <= tried, "{coding}: {missed:?} of {tried}");
    }
}

/// (In some progressive scans, zeros are the shortest code: nothing more in this block. There, a short hole has the
/// length of padding.)
#[test]
fn hole_at_the_end_of_a_scan_is_not_padding() {
    for (coding, plain) in codings().into_iter().filter(|(coding, _)| *coding != "few scans") {
        let data = longest_data(&plain);
        for length in [64, 200, data.len() / 2] {
            let zeros = vec![0; length];
            let hole = spliced(&plain, data.end - length..data.end, &zeros);
            assert_damaged(&hole, &format!("{coding}, the last {length} bytes"));
        }
    }
}

/// A transfer in text mode drops bytes all over the file.
#[test]
fn transfer_in_text_mode_is_noticed() {
    for (coding, plain) in codings() {
        let data = longest_data(&plain);
        let kept = plain[data.clone()].iter().copied().filter(|byte| *byte != b'\n');
        let sent = spliced(&plain, data, &kept.collect::<Vec<_>>());
        assert_damaged(&sent, &format!("{coding}, {} bytes lost", plain.len() - sent.len()));
    }
}

/// A flipped bit that changes only values, or adds as many blocks as it costs, is noticed by no decoder.
#[test]
fn flipped_bytes_are_noticed_where_data_is_left_or_missing() {
    for (coding, plain) in codings() {
        let data = longest_data(&plain);
        let (mut noticed, mut tried) = (0, 0);
        for at in (data.start..data.end - 100).step_by(data.len() / 97) {
            let mut flipped = plain.clone();
            flipped[at] ^= 0x55;
            if flipped[at] != 0xFF && plain[at] != 0xFF && plain[at - 1] != 0xFF {
                tried += 1;
                noticed += usize::from(decoded(&flipped).is_err());
            }
        }
        println!("{coding}: {noticed} of {tried}");
        assert!(8 * noticed > tried, "{coding}: {noticed} of {tried}");
    }
}

#[test]
fn number_of_segments_is_limited() {
    let (_, plain) = codings().swap_remove(0);
    let comments = |count: usize| inserted(&plain, 2, &b"\xFF\xFE\0\x02".repeat(count));
    assert!(decoded(&comments(1000)).is_ok());
    assert_damaged(&comments(1 << 16), "more segments than pictures have");
}
