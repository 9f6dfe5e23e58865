//! Lenient EXIF parsing. Unreadable fields count as absent; none can fail a job.

use std::io::Cursor;

use chrono::{NaiveDate, NaiveDateTime, TimeDelta};
use exif::{DateTime, Exif, Field, In, Reader, Tag, Value, experimental::Writer};
use image::metadata::Orientation;
use safelight_domain::Gps;

use crate::webp;

/// The EXIF fields that Safelight uses.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    /// 1–8; 1 if absent or invalid.
    pub orientation: u8,
    pub taken_at: Option<NaiveDateTime>,
    pub gps: Option<Gps>,
    /// Artist and copyright, verbatim.
    rights: Vec<Field>,
}

impl Metadata {
    /// Reads the EXIF block of a picture of any format.
    pub fn read(bytes: &[u8]) -> Self {
        let parsed = Reader::new()
            .continue_on_error(true)
            .read_from_container(&mut Cursor::new(bytes))
            .or_else(|error| error.distill_partial_result(|_| ()))
            .or_else(|error| Self::read_prefixed(bytes).ok_or(error));
        let Ok(exif) = parsed else { return Self { orientation: 1, ..Self::default() } };
        let (orientation, taken_at) = (orientation(&exif), taken_at(&exif));
        Self { orientation, taken_at, gps: gps(&exif), rights: rights(&exif) }
    }

    /// Reads the EXIF chunk of a WebP with the prefix that JPEG uses, as some programs write it.
    fn read_prefixed(bytes: &[u8]) -> Option<Exif> {
        let block = webp::chunk(bytes, *b"EXIF")?;
        Reader::new().read_raw(block.strip_prefix(b"Exif\0\0")?.to_vec()).ok()
    }

    /// The transformation that puts the picture upright.
    pub fn transform(&self) -> Orientation {
        Orientation::from_exif(self.orientation).unwrap_or(Orientation::NoTransforms)
    }

    /// An EXIF block with only artist and copyright; `None` if there is neither.
    pub fn copyright(&self) -> Option<Vec<u8>> {
        let mut writer = Writer::new();
        self.rights.iter().for_each(|field| writer.push_field(field));
        let mut block = Cursor::new(Vec::new());
        let written = !self.rights.is_empty() && writer.write(&mut block, false).is_ok();
        written.then(|| block.into_inner())
    }
}

/// The longest artist or copyright text that is kept, in bytes.
const MAX_RIGHTS_BYTES: usize = 1000;

fn rights(exif: &Exif) -> Vec<Field> {
    let text = |tag: Tag| {
        let value = exif.get_field(tag, In::PRIMARY)?.value.clone();
        match &value {
            Value::Ascii(lines)
                if lines.iter().map(Vec::len).sum::<usize>() <= MAX_RIGHTS_BYTES =>
            {
                Some(Field { tag, ifd_num: In::PRIMARY, value })
            }
            _ => None,
        }
    };
    [Tag::Artist, Tag::Copyright].into_iter().filter_map(text).collect()
}

fn orientation(exif: &Exif) -> u8 {
    exif.get_field(Tag::Orientation, In::PRIMARY)
        .and_then(|field| field.value.get_uint(0))
        .and_then(|value| u8::try_from(value).ok())
        .filter(|value| (1..=8).contains(value))
        .unwrap_or(1)
}

fn taken_at(exif: &Exif) -> Option<NaiveDateTime> {
    let field = exif.get_field(Tag::DateTimeOriginal, In::PRIMARY)?;
    let Value::Ascii(lines) = &field.value else { return None };
    let mut read = DateTime::from_ascii(lines.first()?).ok()?;
    if let Some(Value::Ascii(offset)) =
        exif.get_field(Tag::OffsetTimeOriginal, In::PRIMARY).map(|field| &field.value)
    {
        // An unreadable offset counts as absent.
        let _ = read.parse_offset(offset.first()?);
    }
    let offset = TimeDelta::minutes(read.offset.unwrap_or(0).into());
    // Cameras whose clock was never set write zeros.
    NaiveDate::from_ymd_opt(read.year.into(), read.month.into(), read.day.into())
        .filter(|_| read.year > 0)?
        .and_hms_opt(read.hour.into(), read.minute.into(), read.second.into())?
        .checked_sub_signed(offset)
}

fn gps(exif: &Exif) -> Option<Gps> {
    let degrees = |value: Tag, reference: Tag, negative: u8, limit: f64| {
        let Value::Rational(parts) = &exif.get_field(value, In::PRIMARY)?.value else {
            return None;
        };
        let [degrees, minutes, seconds] = parts.as_slice() else { return None };
        let angle = degrees.to_f64() + minutes.to_f64() / 60.0 + seconds.to_f64() / 3600.0;
        let Value::Ascii(letters) = &exif.get_field(reference, In::PRIMARY)?.value else {
            return None;
        };
        let sign = if letters.first()?.first()? == &negative { -1.0 } else { 1.0 };
        // A denominator of zero gives NaN or infinity, which fails the comparison.
        (angle <= limit).then_some(sign * angle)
    };
    Some(Gps {
        latitude: degrees(Tag::GPSLatitude, Tag::GPSLatitudeRef, b'S', 90.0)?,
        longitude: degrees(Tag::GPSLongitude, Tag::GPSLongitudeRef, b'W', 180.0)?,
    })
}
