//! The structure of a TIFF file: directories and their fields, in either byte order, and in the sizes of
//! classic TIFF (TIFF 6.0, section 2) and `BigTIFF`.

/// The tags that this crate reads (TIFF 6.0, appendix A, and its supplements).
pub(super) mod tag {
    pub const NEW_SUBFILE_TYPE: u16 = 254;
    pub const SUBFILE_TYPE: u16 = 255;
    pub const IMAGE_WIDTH: u16 = 256;
    pub const IMAGE_LENGTH: u16 = 257;
    pub const BITS_PER_SAMPLE: u16 = 258;
    pub const COMPRESSION: u16 = 259;
    pub const PHOTOMETRIC: u16 = 262;
    pub const FILL_ORDER: u16 = 266;
    pub const MAKE: u16 = 271;
    pub const STRIP_OFFSETS: u16 = 273;
    pub const ORIENTATION: u16 = 274;
    pub const SAMPLES_PER_PIXEL: u16 = 277;
    pub const ROWS_PER_STRIP: u16 = 278;
    pub const STRIP_BYTE_COUNTS: u16 = 279;
    pub const PLANAR_CONFIGURATION: u16 = 284;
    pub const T4_OPTIONS: u16 = 292;
    pub const PREDICTOR: u16 = 317;
    pub const COLOR_MAP: u16 = 320;
    pub const TILE_WIDTH: u16 = 322;
    pub const TILE_LENGTH: u16 = 323;
    pub const TILE_OFFSETS: u16 = 324;
    pub const TILE_BYTE_COUNTS: u16 = 325;
    pub const SUB_IFDS: u16 = 330;
    pub const INK_SET: u16 = 332;
    pub const EXTRA_SAMPLES: u16 = 338;
    pub const SAMPLE_FORMAT: u16 = 339;
    pub const JPEG_TABLES: u16 = 347;
    pub const YCBCR_COEFFICIENTS: u16 = 529;
    pub const YCBCR_SUBSAMPLING: u16 = 530;
    pub const REFERENCE_BLACK_WHITE: u16 = 532;
    pub const ICC_PROFILE: u16 = 34675;
    pub const DNG_VERSION: u16 = 50706;
}

/// The most fields of a directory. A field is looked up from the first one on, and the pages of a small file may
/// share their bytes.
const MAX_FIELDS: u64 = 4096;

/// A TIFF or `BigTIFF`.
#[derive(Clone, Copy)]
pub(super) struct File<'a> {
    bytes: &'a [u8],
    pub big_endian: bool,
    is_big_tiff: bool,
    /// Where the first directory is.
    pub first: u64,
}

/// One directory: the description of one page.
#[derive(Clone, Copy)]
pub(super) struct Directory<'a> {
    file: File<'a>,
    entries: &'a [u8],
    /// Where the next directory of the chain is; 0 after the last one.
    pub next: u64,
}

/// The values of one field.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    data: &'a [u8],
    kind: u16,
    big_endian: bool,
}

impl<'a> File<'a> {
    /// `None` if the header is not that of a TIFF.
    pub fn open(bytes: &'a [u8]) -> Option<Self> {
        let big_endian = bytes.starts_with(b"MM");
        let mut file = Self { bytes, big_endian, is_big_tiff: false, first: 0 };
        file.is_big_tiff = file.number(2, 2)? == 43;
        file.first = if file.is_big_tiff { file.number(8, 8)? } else { file.number(4, 4)? };
        Some(file)
    }

    /// The bytes at an offset; `None` if they are not all there.
    pub fn slice(&self, offset: u64, length: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        self.bytes.get(start..end)
    }

    /// The bytes from an offset to the end of the file.
    pub fn tail(&self, offset: u64) -> Option<&'a [u8]> {
        self.bytes.get(usize::try_from(offset).ok()?..)
    }

    fn number(&self, offset: u64, length: u64) -> Option<u64> {
        Some(unsigned(self.slice(offset, length)?, self.big_endian))
    }

    /// Reads the directory at an offset; `None` if it is not there, or has more fields than any picture.
    pub fn directory(&self, offset: u64) -> Option<Directory<'a>> {
        let (count_size, entry_size, pointer_size) =
            if self.is_big_tiff { (8, 20, 8) } else { (2, 12, 4) };
        let count = self.number(offset, count_size).filter(|count| *count <= MAX_FIELDS)?;
        let start = offset.checked_add(count_size)?;
        let length = count.checked_mul(entry_size)?;
        let entries = self.slice(start, length)?;
        // A file that ends here has no further page.
        let next = self.number(start + length, pointer_size).unwrap_or(0);
        Some(Directory { file: *self, entries, next })
    }
}

impl<'a> Directory<'a> {
    /// A field that exists and whose values are within the file.
    pub fn field(&self, tag: u16) -> Option<Field<'a>> {
        let File { big_endian, is_big_tiff, .. } = self.file;
        let entry_size = if is_big_tiff { 20 } else { 12 };
        let is_wanted = |entry: &&[u8]| unsigned(&entry[..2], big_endian) == u64::from(tag);
        let entry = self.entries.chunks_exact(entry_size).find(is_wanted)?;
        let kind = u16::try_from(unsigned(&entry[2..4], big_endian)).ok()?;
        let (count, inline) = entry[4..].split_at(if is_big_tiff { 8 } else { 4 });
        let length = unsigned(count, big_endian).checked_mul(size_of_kind(kind)?)?;
        let data = match inline.get(..usize::try_from(length).ok()?) {
            Some(data) => data,
            None => self.file.slice(unsigned(inline, big_endian), length)?,
        };
        Some(Field { data, kind, big_endian })
    }

    /// The first value of a field, as an unsigned number.
    pub fn value(&self, tag: u16) -> Option<u64> {
        self.field(tag)?.unsigned(0)
    }

    pub fn file(&self) -> File<'a> {
        self.file
    }
}

impl<'a> Field<'a> {
    /// The number of values.
    pub fn count(&self) -> usize {
        self.data.len() / self.item_size()
    }

    fn item_size(&self) -> usize {
        size_of_kind(self.kind).and_then(|size| usize::try_from(size).ok()).unwrap_or(1)
    }

    fn item(&self, index: usize) -> Option<&'a [u8]> {
        let size = self.item_size();
        let start = index.checked_mul(size)?;
        self.data.get(start..start.checked_add(size)?)
    }

    /// A value of an integer kind, if it is not negative.
    pub fn unsigned(&self, index: usize) -> Option<u64> {
        let item = self.item(index)?;
        let value = unsigned(item, self.big_endian);
        let is_signed = matches!(self.kind, 6 | 8 | 9 | 17);
        let is_negative = is_signed && value >> (8 * item.len() - 1) & 1 == 1;
        let is_integer = is_signed || matches!(self.kind, 1 | 3 | 4 | 7 | 13 | 16 | 18);
        (is_integer && !is_negative).then_some(value)
    }

    /// A value of any numeric kind.
    pub fn number(&self, index: usize) -> Option<f64> {
        let item = self.item(index)?;
        match self.kind {
            5 => {
                let (numerator, denominator) = item.split_at(4);
                let part = |bytes| u32::try_from(unsigned(bytes, self.big_endian)).ok();
                Some(f64::from(part(numerator)?) / f64::from(part(denominator)?))
            }
            11 => {
                let bits = u32::try_from(unsigned(item, self.big_endian)).ok()?;
                Some(f32::from_bits(bits).into())
            }
            12 => Some(f64::from_bits(unsigned(item, self.big_endian))),
            _ => u32::try_from(self.unsigned(index)?).ok().map(f64::from),
        }
    }

    /// All values as bytes, in the file's byte order.
    pub fn bytes(&self) -> &'a [u8] {
        self.data
    }
}

/// The size of one value in bytes (TIFF 6.0, page 15; kinds 13 to 18 from its supplement and `BigTIFF`).
fn size_of_kind(kind: u16) -> Option<u64> {
    match kind {
        1 | 2 | 6 | 7 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 11 | 13 => Some(4),
        5 | 10 | 12 | 16..=18 => Some(8),
        _ => None,
    }
}

/// A number of at most eight bytes.
pub(super) fn unsigned(bytes: &[u8], big_endian: bool) -> u64 {
    let join = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    if big_endian { bytes.iter().fold(0, join) } else { bytes.iter().rev().fold(0, join) }
}
