//! The index of properties, and properties that are there more than once.

use super::{
    super::{
        boxes::{FourCc, Meta, PropertyIndex, Reader},
        coding::Chroma,
        properties::{Brightness, ItemProperties},
    },
    file::{Item, file},
    fixture::boxed,
    *,
};

/// The content of `iprp`: boxes, and for each item, from 1, the same properties.
fn properties(boxes: &[u8], items: u16, indices: &[u16]) -> Vec<u8> {
    let indices: Vec<u8> = indices.iter().flat_map(|index| index.to_be_bytes()).collect();
    let mut associations = vec![0, 0, 0, 1];
    associations.extend(u32::from(items).to_be_bytes());
    let count = u8::try_from(indices.len() / 2).expect("made here");
    for id in 1..=items {
        associations.extend(id.to_be_bytes());
        associations.push(count);
        associations.extend(&indices);
    }
    [boxed(*b"ipco", &[boxes]), boxed(*b"ipma", &[&associations])].concat()
}

#[test]
fn properties_are_found_by_their_index() {
    let boxes = boxed(*b"free", &[]).repeat(0x7ffe);
    let boxes = [&boxes[..], &boxed(*b"last", &[]), &boxed(*b"more", &[])].concat();
    // A search of the boxes for each takes longer than a test may.
    let bytes = properties(&boxes, 16_000, &[0x7fff; 255]);
    let index = PropertyIndex::read(Reader(&bytes)).expect("made here");
    for id in 1..=16_000 {
        let found = index.of(id).expect("an item");
        assert!(found.len() == 255 && found.iter().all(|property| property.kind == *b"last"));
    }
    assert_eq!(index.of(16_001).err(), Some(Corrupt));
}

#[test]
fn number_of_items_is_limited() {
    let boxes = boxed(*b"free", &[]);
    let read = |items| {
        let bytes = properties(&boxes, items, &[1]);
        PropertyIndex::read(Reader(&bytes)).map(|index| index.of(1).is_ok())
    };
    assert_eq!(read(1 << 14), Ok(true));
    assert_eq!(read((1 << 14) + 1), Err(Unsupported("too many items")));
    // An item that is not among those that a search passes.
    let mut fixture = Fixture::new(Av1::default());
    fixture.in_idat = true;
    let bytes = fixture.build();
    let (mut infos, mut locations) = (vec![0; 6], vec![1, 0, 0, 0, 0x44, 0]);
    let count = (1_u16 << 14) + 1;
    locations.extend(count.to_be_bytes());
    for _ in 0..count {
        infos.extend(boxed(*b"infe", &[&[2, 0, 0, 0, 0, 9, 0, 0], b"av01", b"\0"]));
        locations.extend([0, 9, 0, 0, 0, 0, 0, 0]);
    }
    let mut meta = Meta::open(&bytes).expect("made here");
    assert_eq!(meta.item_type(1), Ok(*b"av01"));
    assert!(meta.extents(1).is_ok());
    (meta.infos, meta.locations) = (Reader(&infos), Reader(&locations));
    assert_eq!(meta.item_type(1), Err(Unsupported("too many items")));
    assert_eq!(meta.extents(1).err(), Some(Unsupported("too many items")));
}

#[test]
fn properties_that_do_not_exist_are_corrupt() {
    let boxes = boxed(*b"free", &[]);
    for (index, expected) in [(0, None), (1, None), (2, Some(Corrupt))] {
        let bytes = properties(&boxes, 1, &[index]);
        let found = PropertyIndex::read(Reader(&bytes)).expect("made here").of(1);
        assert_eq!(found.err(), expected, "{index}");
    }
}

#[test]
fn first_property_of_each_kind_counts() {
    let alpha: &[u8] = b"\0\0\0\0urn:mpeg:hevc:2015:auxid:1\0";
    let mastering = |peak: u8| [&[0; 16][..], &[0, peak, 0, 0, 0, 0, 0, 0]].concat();
    let hevc = |chroma| [&[0; 16][..], &[chroma, 0, 0, 0, 0, 3, 0]].concat();
    let twice: [(FourCc, [&[u8]; 2]); 9] = [
        (*b"ispe", [&[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 8], &[7; 12]]),
        (*b"av1C", [&[0x81, 0, 0x1C, 0], &[0x81, 0, 0x40, 0]]),
        (*b"hvcC", [&hevc(1), &hevc(2)]),
        (*b"irot", [&[0], &[1]]),
        (*b"imir", [&[0], &[1]]),
        (*b"auxC", [alpha, b"\0\0\0\0depth\0"]),
        (*b"clli", [&[1, 0, 0, 0], &[2, 0, 0, 0]]),
        (*b"mdcv", [&mastering(1), &mastering(2)]),
        (*b"colr", [b"nclx\0\x01\0\x0d\0\x01\0", b"nclx\0\x09\0\x10\0\x09\0"]),
    ];
    let mut properties = ItemProperties::default();
    for (kind, bodies) in &twice {
        for body in bodies {
            assert_eq!(properties.add(*kind, Reader(body)), Ok(true));
        }
    }
    assert_eq!(properties.size, Some((9, 8)));
    assert_eq!(properties.av1.map(|coding| (coding.depth, coding.chroma)), Some((8, Chroma::None)));
    let (coding, bytes) = properties.hevc.expect("added");
    assert_eq!((coding.chroma, bytes), (Chroma::Quarter, &hevc(1)[..]));
    assert_eq!((properties.rotation, properties.mirror), (Some(0), Some(0)));
    assert_eq!(properties.holds_alpha, Some(true));
    let brightness = properties.brightness;
    assert_eq!((brightness.brightest, brightness.mastering_peak), (Some(256), Some(6)));
    assert_eq!(properties.nclx.map(|cicp| cicp.primaries), Some(1));
}

#[test]
fn coding_is_that_of_the_codec_whatever_comes_first() {
    let mut item = Item::av1(Av1::default().encode(), 0, (64, 48));
    let hevc = [&[0; 16][..], &[0, 0, 0, 0, 0, 3, 0]].concat();
    item.properties.insert(0, (*b"hvcC", hevc));
    let header = header(&file(*b"avif", &[item])).expect("made here");
    assert_eq!(header.coding.chroma, Chroma::Full);
}

#[test]
fn type_of_alpha_ends_with_its_box_or_with_zero() {
    for (end, expected) in [("", true), ("\0", true), ("\0more", true), ("0", false)] {
        for urn in ["urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", "urn:mpeg:hevc:2015:auxid:1"] {
            let body = format!("\0\0\0\0{urn}{end}");
            let mut properties = ItemProperties::default();
            properties.add(*b"auxC", Reader(body.as_bytes())).expect("known");
            assert_eq!(properties.holds_alpha, Some(expected), "{end:?}");
        }
    }
}

#[test]
fn unknown_brightness_has_no_peak() {
    let peak = |brightest, mastering_peak| Brightness { brightest, mastering_peak }.peak();
    assert_eq!(peak(None, None), None);
    assert_eq!(peak(Some(0), Some(0)), None);
    assert_eq!(peak(Some(0), Some(1000)), Some(1000.0));
    assert_eq!(peak(Some(500), Some(1000)), Some(500.0));
    assert_eq!(peak(None, Some(100_000)), Some(65_535.0));
}

#[test]
fn transformations_need_not_be_marked_as_essential() {
    let aperture = [30_u32, 1, 20, 1, 0, 1, 0, 1].map(u32::to_be_bytes).concat();
    let properties = [(*b"clap", aperture), (*b"irot", vec![1]), (*b"imir", vec![1])];
    let mut fixture = Fixture::new(Av1::default());
    let mut item = Item::av1(Av1::default().encode(), 0, (64, 48));
    for (kind, body) in properties {
        fixture = fixture.with(kind, &body);
        item = item.with(kind, &body);
    }
    // The builder of items marks nothing as essential.
    for bytes in [fixture.build(), file(*b"avif", &[item])] {
        let header = header(&bytes).expect("made here");
        assert_eq!((header.orientation, header.visible_size()), (7, (30, 20)));
    }
}
