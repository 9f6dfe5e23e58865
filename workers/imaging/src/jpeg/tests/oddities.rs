//! Oddities that cost no pixel, alone and together with damage.

use super::*;

/// Odd variants of a picture whose pixels are those of the picture.
fn oddities(plain: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let (jfif, table) = (segment(plain, APP0), segment(plain, DQT).start);
    let adobe =
        |transform| [b"\xFF\xEE\x00\x0EAdobe\x00\x64\x00\x00\x00\x00", &[transform][..]].concat();
    let profile = |number, count| {
        [&[0xFF, 0xE2, 0, 20][..], b"ICC_PROFILE\0", &[number, count], b"abcd"].concat()
    };
    let unnamed = spliced(plain, jfif.clone(), &[]);
    let mut odd = vec![
        ("stray bytes", inserted(plain, table, b"\x00\x01\x02\x7F")),
        ("stray bytes before the first scan", inserted(plain, segment(plain, SOS).start, b"stray")),
        ("JFIF 2.1", spliced(plain, jfif.start + 9..jfif.start + 11, &[2, 1])),
        ("Adobe's transform 5", inserted(&unnamed, 2, &adobe(5))),
        ("Adobe's transform 255 and JFIF", inserted(plain, table, &adobe(255))),
        ("one of two parts of a profile", inserted(plain, table, &profile(1, 2))),
        ("part 0 of a profile", inserted(plain, table, &profile(0, 1))),
        ("a profile twice", inserted(plain, table, &[profile(1, 1), profile(1, 1)].concat())),
        ("fill bytes", inserted(plain, table, &[0xFF; 5])),
        ("bytes after the end", [plain, b"a video \xFF\xC4\x00\x05abc"].concat()),
    ];
    let sos = scans(plain);
    if sos.len() == 1 {
        let at = segment(plain, SOS).end;
        for (what, parameters) in [
            ("Ss to Al are 0", [0, 0, 0]),
            ("Al is 1", [0, 63, 1]),
            ("Ah and Al are 15", [0, 63, 0xFF]),
            ("Ss is 1", [1, 5, 0]),
        ] {
            odd.push((what, spliced(plain, at - 3..at, &parameters)));
        }
    } else {
        let last = sos.last().expect("a scan");
        odd.push(("a scan twice", inserted(plain, last.end, &plain[last.clone()])));
        odd.push(("AC before DC", dc_last(plain)));
    }
    odd
}

/// Moves the tables and the data of the first scan behind the second one.
fn dc_last(plain: &[u8]) -> Vec<u8> {
    let scans = scans(plain);
    let (dc, ac) = (scans[0].clone(), scans[1].clone());
    [&plain[..dc.start], &plain[dc.end..ac.end], &plain[dc], &plain[ac.end..]].concat()
}

#[test]
fn oddities_cost_no_pixel() {
    for (coding, plain) in codings() {
        let pixels = decoded(&plain).expect("an intact picture");
        for (what, odd) in oddities(&plain) {
            let found = decoded(&odd).unwrap_or_else(|why| panic!("{coding}, {what}: {why}"));
            assert!(found == pixels, "{coding}, {what}: other pixels");
        }
    }
}

/// An oddity must not lead to a decoder, or to a path, that misses less.
#[test]
fn damage_is_noticed_in_spite_of_oddities() {
    for (coding, plain) in codings() {
        for (what, odd) in oddities(&plain) {
            let data = longest_data(&odd);
            let half = spliced(&odd, data.start + data.len() / 2..data.end, &[]);
            assert_damaged(&half, &format!("{coding}, {what}, and half of a scan"));
            let (at, length) = (data.start + data.len() / 4, data.len() / 3);
            let hole = spliced(&odd, at..at + length, &vec![0; length]);
            assert_damaged(&hole, &format!("{coding}, {what}, and a hole"));
        }
    }
}

#[test]
fn end_marker_may_be_missing_if_all_coefficients_are_there() {
    let block = |tag: [u8; 4], name: &[u8]| {
        [
            &tag[..],
            &(name.len() as u32).to_le_bytes(),
            name,
            b"\0\0\0\x18ftypmp42 \xFF\xD8\xFF\xC4\xFF\xD9",
        ]
        .concat()
    };
    let trailers: [(&str, Vec<u8>); 5] = [
        ("nothing", Vec::new()),
        ("half of a marker", vec![0xFF]),
        ("zeros", vec![0; 500]),
        ("a panorama's", [block([0, 0, 1, 10], b"Panorama_Shot_Info"), b"SEFT".to_vec()].concat()),
        ("a video's", [block([0, 0, 0x30, 10], b"MotionPhoto_Data"), b"SEFT".to_vec()].concat()),
    ];
    for (coding, plain) in codings() {
        let pixels = decoded(&plain).expect("an intact picture");
        let end = segment_end(&plain);
        for (what, trailer) in &trailers {
            let found = decoded(&[&plain[..end], trailer].concat());
            let found = found.unwrap_or_else(|why| panic!("{coding}, {what}: {why}"));
            assert!(found == pixels, "{coding}, {what}: other pixels");
            for missing in [2, 3, 10, 60] {
                let cut = [&plain[..end - missing], trailer].concat();
                assert_damaged(&cut, &format!("{coding}, {what}, {missing} bytes are missing"));
            }
        }
        let last = scans(&plain).pop().expect("a scan");
        if scans(&plain).len() > 1 {
            for zeros in [0, 500] {
                let twice = [&plain[..end], &plain[last.clone()], &vec![0; zeros]].concat();
                assert!(
                    decoded(&twice) == Ok(pixels.clone()),
                    "{coding}, last scan twice, {zeros}"
                );
            }
        }
        let other = [&plain[..end], b"<html>502 Bad Gateway</html>"].concat();
        assert_damaged(&other, &format!("{coding}, something else follows"));
    }
}

/// Where the entropy-coded data of the last scan ends.
fn segment_end(bytes: &[u8]) -> usize {
    scans(bytes).last().expect("a scan").end
}

/// All scans of a progressive picture must be there, or the end marker that says that there are no more.
#[test]
fn picture_cut_between_scans_is_incomplete() {
    for (coding, plain) in codings() {
        let scans = scans(&plain);
        for scan in &scans[1..] {
            assert_damaged(&plain[..scan.start], &format!("{coding}, before a scan"));
            assert_damaged(&plain[..scan.start + 5], &format!("{coding}, in a scan's header"));
        }
    }
}

#[test]
fn padding_is_not_damage() {
    for (coding, plain) in codings() {
        let pixels = decoded(&plain).expect("an intact picture");
        let end = segment_end(&plain);
        let mut padded = vec![
            ("zeros before the end", inserted(&plain, end, &[0; 700])),
            ("one zero before the end", inserted(&plain, end, &[0])),
            ("zeros and fill bytes", inserted(&plain, end, &[&[0; 9][..], &[0xFF; 9]].concat())),
            ("fill bytes before the end", inserted(&plain, end, &[0xFF; 40])),
        ];
        let mut between = plain.clone();
        for scan in scans(&plain).iter().rev().skip(1) {
            between = inserted(&between, scan.end, &[0; 64]);
        }
        padded.push(("zeros between scans", between));
        let data = longest_data(&plain);
        let restarts: Vec<usize> = (data.start..data.end)
            .filter(|&at| plain[at] == 0xFF && (0xD0..=0xD7).contains(&plain[at + 1]))
            .collect();
        let mut before_restarts = plain.clone();
        for &at in restarts.iter().rev() {
            before_restarts = inserted(&before_restarts, at, &[0; 3]);
        }
        assert_eq!(coding == "restarts", !restarts.is_empty());
        padded.push(("zeros before restart markers", before_restarts));
        for (what, padded) in padded {
            let found = decoded(&padded).unwrap_or_else(|why| panic!("{coding}, {what}: {why}"));
            assert!(found == pixels, "{coding}, {what}: other pixels");
        }
        for junk in [&[0x5A; 40][..], &[&[0; 40][..], &[1]].concat()] {
            let junk = inserted(&plain, end, junk);
            assert_damaged(&junk, &format!("{coding}, unused data before the end"));
        }
    }
}

#[test]
fn profile_there_twice_or_in_part_is_none() {
    let plain = encoded(|_| ());
    let icc = moxcms::ColorProfile::new_display_p3().encode().expect("a profile");
    let part = |number, count, content: &[u8]| {
        let length = (16 + content.len() as u16).to_be_bytes();
        [&[0xFF, 0xE2][..], &length, b"ICC_PROFILE\0", &[number, count], content].concat()
    };
    let (first, second) = icc.split_at(icc.len() / 2);
    let cases = [
        (vec![part(1, 1, &icc)], true),
        (vec![part(2, 2, second), part(1, 2, first)], true),
        (vec![part(1, 1, &icc), part(1, 1, &icc)], false),
        (vec![part(1, 2, &icc)], false),
        (vec![part(1, 2, &icc), part(2, 2, &[])], false),
    ];
    for (parts, counts) in cases {
        let bytes = inserted(&plain, segment(&plain, DQT).start, &parts.concat());
        let header = Header::read(&bytes).expect("a header");
        let mut resizer = Resizer::new().expect("a resizer");
        let picture = decode(&bytes, &header, 1.0, &mut resizer).expect("a picture");
        assert_eq!(picture.color.is_some(), counts, "{} parts", parts.len());
    }
}

#[test]
fn copies_of_the_file_count_as_memory() {
    let header = Header::read(&encoded(|_| ())).expect("a header");
    assert_eq!(decode_memory(&header, 1000) - decode_memory(&header, 0), 2000);
}
