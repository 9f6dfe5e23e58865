//! Builds HEIF files from items.

use super::super::boxes::FourCc;
use super::fixture::boxed;

/// An item; its id is its place in the file, from 1.
#[derive(Clone)]
pub(crate) struct Item {
    pub kind: FourCc,
    pub data: Vec<u8>,
    pub properties: Vec<(FourCc, Vec<u8>)>,
    /// Kind and targets.
    pub references: Vec<(FourCc, Vec<u16>)>,
}

impl Item {
    /// An item of this size in pixels.
    pub fn new(kind: FourCc, data: Vec<u8>, (width, height): (u32, u32)) -> Self {
        let size = [[0; 4], width.to_be_bytes(), height.to_be_bytes()].concat();
        Self { kind, data, properties: vec![(*b"ispe", size)], references: Vec::new() }
    }

    /// A coded AV1 picture. `flags` is the third byte of its configuration.
    pub fn av1(data: Vec<u8>, flags: u8, size: (u32, u32)) -> Self {
        Self::new(*b"av01", data, size).with(*b"av1C", &[0x81, 0, flags, 0])
    }

    /// A grid of the items `first` and those after it.
    pub fn grid(rows: u8, columns: u8, size: (u16, u16), first: u16) -> Self {
        let [width, height] = [size.0, size.1].map(u16::to_be_bytes);
        let data = [&[0, 0, rows - 1, columns - 1][..], &width, &height].concat();
        let count = u16::from(rows) * u16::from(columns);
        Self::new(*b"grid", data, (size.0.into(), size.1.into()))
            .referring(*b"dimg", (first..first + count).collect())
    }

    pub fn with(mut self, kind: FourCc, body: &[u8]) -> Self {
        self.properties.push((kind, body.to_vec()));
        self
    }

    pub fn referring(mut self, kind: FourCc, targets: Vec<u16>) -> Self {
        self.references.push((kind, targets));
        self
    }

    /// Makes it the alpha of another item.
    pub fn alpha_of(self, target: u16) -> Self {
        self.with(*b"auxC", b"\0\0\0\0urn:mpeg:hevc:2015:auxid:1\0")
            .referring(*b"auxl", vec![target])
    }
}

/// A file with these items, of which the first is the picture.
pub(crate) fn file(brand: [u8; 4], items: &[Item]) -> Vec<u8> {
    let head = |at| {
        let ftyp = boxed(*b"ftyp", &[&brand, &[0; 4], b"mif1", &brand]);
        [ftyp, boxed(*b"meta", &[&[0; 4], &meta(items, at)])].concat()
    };
    let start = head(0).len() + 8;
    let data: Vec<&[u8]> = items.iter().map(|item| &item.data[..]).collect();
    [head(start), boxed(*b"mdat", &data)].concat()
}

fn short(value: usize) -> [u8; 2] {
    u16::try_from(value).expect("made here").to_be_bytes()
}

fn long(value: usize) -> [u8; 4] {
    u32::try_from(value).expect("made here").to_be_bytes()
}

fn meta(items: &[Item], mut at: usize) -> Vec<u8> {
    let (mut infos, mut locations, mut references) = (Vec::new(), Vec::new(), vec![0; 4]);
    let (mut all, mut associations, mut count) = (Vec::new(), Vec::new(), 0_u8);
    for (id, item) in (1..).zip(items) {
        infos.extend(boxed(*b"infe", &[&[2, 0, 0, 0], &short(id), &[0; 2], &item.kind, b"\0"]));
        locations
            .extend([&short(id)[..], &[0, 0, 0, 1], &long(at), &long(item.data.len())].concat());
        at += item.data.len();
        for (kind, targets) in &item.references {
            let targets: Vec<u8> = targets.iter().flat_map(|to| to.to_be_bytes()).collect();
            references.extend(boxed(*kind, &[&short(id), &short(targets.len() / 2), &targets]));
        }
        associations.extend(
            [&short(id)[..], &[u8::try_from(item.properties.len()).expect("few")]].concat(),
        );
        for (kind, body) in &item.properties {
            all.extend(boxed(*kind, &[body]));
            count += 1;
            associations.push(count);
        }
    }
    let associations = boxed(*b"ipma", &[&[0; 4], &long(items.len()), &associations]);
    [
        boxed(*b"hdlr", &[&[0; 8], b"pict", &[0; 13]]),
        boxed(*b"pitm", &[&[0; 4], &short(1)]),
        boxed(*b"iinf", &[&[0; 4], &short(items.len()), &infos]),
        boxed(*b"iref", &[&references]),
        boxed(*b"iprp", &[&boxed(*b"ipco", &[&all]), &associations]),
        boxed(*b"iloc", &[&[0, 0, 0, 0, 0x44, 0], &short(items.len()), &locations]),
    ]
    .concat()
}
