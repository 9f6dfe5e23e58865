//! The boxes of a HEIF file (ISO/IEC 14496-12) that describe and locate its items (ISO/IEC 23008-12).

use std::{borrow::Cow, collections::BTreeMap, ops::Range};

use super::error::HeifError::{self, Corrupt, Unsupported};

/// A box's or an item's type.
pub(crate) type FourCc = [u8; 4];

/// Largest number of properties: an association's index has 15 bits.
const MAX_PROPERTIES: usize = 0x7fff;

/// Largest number of items with properties, and of items that a search passes. A picture of the most tiles, each
/// with alpha, needs 4,098.
const MAX_ITEMS: usize = 1 << 14;

/// A cursor over bytes: holds those not read yet.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], HeifError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Corrupt)?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], HeifError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Corrupt)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// A big-endian number of 0 to 8 bytes.
    pub fn number(&mut self, bytes: usize) -> Result<u64, HeifError> {
        if bytes > 8 {
            return Err(Corrupt);
        }
        Ok(self.take(bytes)?.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    pub fn byte(&mut self) -> Result<u8, HeifError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    /// A big-endian number of two bytes.
    pub fn short(&mut self) -> Result<u16, HeifError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// A big-endian number of four bytes.
    pub fn long(&mut self) -> Result<u32, HeifError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// A number of four bytes if `wide`, else of two: in most boxes the version decides which.
    pub fn id(&mut self, wide: bool) -> Result<u32, HeifError> {
        if wide { self.long() } else { self.short().map(u32::from) }
    }

    /// A full box's version and flags.
    pub fn version(&mut self) -> Result<(u8, u32), HeifError> {
        let [version, flags @ ..] = self.array::<4>()?;
        Ok((version, flags.iter().fold(0, |value, &byte| value << 8 | u32::from(byte))))
    }

    /// The next box; `None` at the end.
    pub fn next_box(&mut self) -> Result<Option<(FourCc, Reader<'a>)>, HeifError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let size = self.long()?;
        let kind = self.array()?;
        let length = match size {
            0 => self.0.len(),
            1 => usize::try_from(self.number(8)?.checked_sub(16).ok_or(Corrupt)?)
                .map_err(|_| Corrupt)?,
            _ => size.checked_sub(8).ok_or(Corrupt)? as usize,
        };
        Ok(Some((kind, Reader(self.take(length)?))))
    }

    /// The first box of a kind.
    pub fn find(mut self, wanted: FourCc) -> Result<Option<Reader<'a>>, HeifError> {
        while let Some((kind, body)) = self.next_box()? {
            if kind == wanted {
                return Ok(Some(body));
            }
        }
        Ok(None)
    }
}

/// A property of an item.
pub(crate) struct Property<'a> {
    pub kind: FourCc,
    pub body: Reader<'a>,
    /// Whether a reader that does not know the property must not show the item.
    pub essential: bool,
}

/// The boxes that describe and locate the items.
pub(crate) struct Meta<'a> {
    pub file: &'a [u8],
    /// The id of the item to show.
    pub primary: u32,
    pub locations: Reader<'a>,
    pub infos: Reader<'a>,
    pub references: Option<Reader<'a>>,
    pub properties: PropertyIndex<'a>,
    pub data: Option<Reader<'a>>,
}

/// The properties, indexed once: there may be tens of thousands of items that each refer to hundreds of them.
pub(crate) struct PropertyIndex<'a> {
    /// In the file's order.
    boxes: Vec<(FourCc, Reader<'a>)>,
    /// By item.
    associations: BTreeMap<u32, Associations<'a>>,
}

/// The indices of an item's properties.
struct Associations<'a> {
    /// The size of each index, in bytes.
    index_bytes: usize,
    indices: &'a [u8],
}

impl<'a> PropertyIndex<'a> {
    /// Reads the boxes within `iprp`. Behind a damaged one, everything counts as absent.
    pub fn read(properties: Reader<'a>) -> Result<Self, HeifError> {
        let mut all = properties.find(*b"ipco")?.ok_or(Corrupt)?;
        let mut boxes = Vec::new();
        while let Ok(Some(next)) = all.next_box()
            && boxes.len() < MAX_PROPERTIES
        {
            boxes.push(next);
        }
        let mut index = Self { boxes, associations: BTreeMap::new() };
        let mut boxes = properties;
        while let Ok(Some((kind, body))) = boxes.next_box() {
            if kind == *b"ipma" {
                index.associate(body)?;
            }
        }
        Ok(index)
    }

    /// Adds a box of associations. The first of an item count.
    fn associate(&mut self, mut body: Reader<'a>) -> Result<(), HeifError> {
        let (version, flags) = body.version()?;
        let index_bytes = 1 + usize::from(flags & 1 == 1);
        for entry in 0..body.long()? as usize {
            if entry.max(self.associations.len()) >= MAX_ITEMS {
                return Err(Unsupported("too many items"));
            }
            let id = body.id(version > 0)?;
            let count = usize::from(body.byte()?);
            let indices = body.take(count * index_bytes)?;
            self.associations.entry(id).or_insert(Associations { index_bytes, indices });
        }
        Ok(())
    }

    /// The property that an association of one or two bytes points to.
    fn associated(&self, association: &[u8]) -> Result<Property<'a>, HeifError> {
        let (index, essential) = match *association {
            [only] => (u16::from(only & 0x7f), only & 0x80 != 0),
            [high, low] => (u16::from_be_bytes([high & 0x7f, low]), high & 0x80 != 0),
            _ => return Err(Corrupt),
        };
        let Some(position) = usize::from(index).checked_sub(1) else {
            // "No property".
            return Ok(Property { kind: *b"free", body: Reader(&[]), essential: false });
        };
        let &(kind, body) = self.boxes.get(position).ok_or(Corrupt)?;
        Ok(Property { kind, body, essential })
    }

    /// An item's properties, in its order.
    pub fn of(&self, item: u32) -> Result<Vec<Property<'a>>, HeifError> {
        let Associations { index_bytes, indices } = self.associations.get(&item).ok_or(Corrupt)?;
        indices.chunks_exact(*index_bytes).map(|index| self.associated(index)).collect()
    }
}

impl<'a> Meta<'a> {
    pub fn open(file: &'a [u8]) -> Result<Self, HeifError> {
        let mut top = Reader(file);
        match top.next_box()? {
            Some((kind, brands)) if kind == *b"ftyp" && is_heif(brands)? => {}
            _ => return Err(Corrupt),
        }
        let Some(mut meta) = top.find(*b"meta")? else {
            let is_compact = top.find(*b"mini")?.is_some();
            return Err(if is_compact { Unsupported("a compact header") } else { Corrupt });
        };
        meta.version()?;
        let needed = |kind| meta.find(kind)?.ok_or(Corrupt);
        let Some(mut primary) = meta.find(*b"pitm")? else {
            return Err(Unsupported("an image sequence without a still picture"));
        };
        let (version, _) = primary.version()?;
        Ok(Self {
            file,
            primary: primary.id(version > 0)?,
            locations: needed(*b"iloc")?,
            infos: needed(*b"iinf")?,
            references: meta.find(*b"iref")?,
            properties: PropertyIndex::read(needed(*b"iprp")?)?,
            data: meta.find(*b"idat")?,
        })
    }

    pub fn item_type(&self, wanted: u32) -> Result<FourCc, HeifError> {
        let mut infos = self.infos;
        let (version, _) = infos.version()?;
        infos.id(version > 0)?; // the number of entries, which the box's length implies
        for _ in 0..MAX_ITEMS {
            let (kind, mut entry) = infos.next_box()?.ok_or(Corrupt)?;
            let (version, _) = entry.version()?;
            // Older versions have no type, so none of them describes a picture.
            if kind != *b"infe" || version < 2 || entry.id(version > 2)? != wanted {
                continue;
            }
            return if entry.short()? == 0 {
                entry.array()
            } else {
                Err(Unsupported("encryption"))
            };
        }
        Err(Unsupported("too many items"))
    }

    /// Calls `visit` with every reference: kind, source item, target item.
    pub fn each_reference(&self, mut visit: impl FnMut(FourCc, u32, u32)) -> Result<(), HeifError> {
        let Some(mut references) = self.references else { return Ok(()) };
        let (version, _) = references.version()?;
        while let Some((kind, mut body)) = references.next_box()? {
            let from = body.id(version > 0)?;
            for _ in 0..body.short()? {
                visit(kind, from, body.id(version > 0)?);
            }
        }
        Ok(())
    }

    /// The targets of an item's references of one kind, in order.
    pub fn targets(&self, wanted: FourCc, source: u32) -> Result<Vec<u32>, HeifError> {
        let mut targets = Vec::new();
        self.each_reference(|kind, from, to| {
            if kind == wanted && from == source {
                targets.push(to);
            }
        })?;
        Ok(targets)
    }

    /// An item's bytes. Copied only if they are in more than one extent.
    pub fn data(&self, id: u32) -> Result<Cow<'a, [u8]>, HeifError> {
        let (source, extents) = self.extents(id)?;
        if let [extent] = &extents[..] {
            return source.get(extent.clone()).map(Cow::Borrowed).ok_or(Corrupt);
        }
        let mut data = Vec::new();
        for extent in extents {
            let part = source.get(extent).ok_or(Corrupt)?;
            // Overlapping extents could make gigabytes of a small file.
            if data.len() + part.len() > self.file.len() {
                return Err(Corrupt);
            }
            data.extend_from_slice(part);
        }
        Ok(Cow::Owned(data))
    }

    /// The buffer that holds an item's bytes, and the ranges within it.
    pub fn extents(&self, wanted: u32) -> Result<(&'a [u8], Vec<Range<usize>>), HeifError> {
        let mut iloc = self.locations;
        let (version, _) = iloc.version()?;
        let [sizes, more] = iloc.array()?;
        let layout = ExtentLayout {
            offset: usize::from(sizes >> 4),
            length: usize::from(sizes & 15),
            index: if version == 0 { 0 } else { usize::from(more & 15) },
        };
        let base_bytes = usize::from(more >> 4);
        for entry in 0..iloc.id(version > 1)? as usize {
            if entry >= MAX_ITEMS {
                return Err(Unsupported("too many items"));
            }
            let id = iloc.id(version > 1)?;
            let method = if version == 0 { 0 } else { iloc.short()? & 15 };
            let elsewhere = iloc.short()? != 0;
            let base = iloc.number(base_bytes)?;
            let count = usize::from(iloc.short()?);
            let entries = Reader(iloc.take(count * layout.bytes())?);
            if id != wanted {
                continue;
            }
            let source = match (method, self.data) {
                _ if elsewhere => return Err(Unsupported("data in another file")),
                (0, _) => self.file,
                (1, Some(data)) => data.0,
                (1, None) => return Err(Corrupt),
                _ => return Err(Unsupported("data in another item")),
            };
            return Ok((source, layout.read(entries, count, base, source.len())?));
        }
        Err(Corrupt)
    }
}

/// The size of each field of an extent, in bytes.
struct ExtentLayout {
    pub index: usize,
    pub offset: usize,
    pub length: usize,
}

impl ExtentLayout {
    /// The size of an extent, in bytes.
    pub fn bytes(&self) -> usize {
        self.index + self.offset + self.length
    }

    /// Reads an item's extents. An extent without a length reaches to `end`.
    pub fn read(
        &self,
        mut entries: Reader<'_>,
        count: usize,
        base: u64,
        end: usize,
    ) -> Result<Vec<Range<usize>>, HeifError> {
        let mut extents = Vec::new();
        for _ in 0..count {
            entries.take(self.index)?;
            let offset = base.checked_add(entries.number(self.offset)?).ok_or(Corrupt)?;
            let start = usize::try_from(offset).map_err(|_| Corrupt)?;
            let length = usize::try_from(entries.number(self.length)?).map_err(|_| Corrupt)?;
            let end = if length == 0 { end } else { start.checked_add(length).ok_or(Corrupt)? };
            extents.push(start..end);
        }
        Ok(extents)
    }
}

/// Whether a file type box announces AVIF, HEIC, or HEIF that may contain either.
fn is_heif(mut brands: Reader<'_>) -> Result<bool, HeifError> {
    let major: FourCc = brands.array()?;
    brands.long()?;
    let wanted = |brand: &[u8]| {
        matches!(brand, b"avif" | b"avis" | b"mif1" | b"msf1")
            || matches!(brand, b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx")
    };
    Ok(wanted(&major) || brands.0.chunks_exact(4).any(wanted))
}
