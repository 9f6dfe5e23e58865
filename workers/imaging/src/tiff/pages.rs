//! Chooses the page that is the picture, and detects raw files of cameras, which have the structure of TIFF.

use safelight_domain::{ErrorCode, Failure};

use super::directory::{Directory, File, tag};
use crate::failure::damaged;

/// Pages beyond these are not looked at: the picture is among the first ones.
const MAX_PAGES: usize = 64;

/// Photometric interpretations of sensor data: a color filter array, and linear raw (DNG 1.4).
const RAW_PHOTOMETRIC: [u64; 2] = [32803, 34892];

/// Compressions that only raw files have: Sony, Samsung, Nikon, Kodak, Pentax.
const RAW_COMPRESSION: [u64; 5] = [32767, 32770, 34713, 65000, 65535];

/// The page to show: the first one that is neither a smaller version of another page nor a mask. A file in
/// which all pages are smaller versions shows the largest.
pub(super) fn main_page(bytes: &[u8]) -> Result<Directory<'_>, Failure> {
    let file = File::open(bytes).ok_or_else(damaged)?;
    let pages = all_pages(file);
    let first = pages.first().ok_or_else(damaged)?;
    if let Some(kind) = raw_kind(bytes, first, &pages) {
        let message = format!("{kind} cannot be decoded; export it as JPEG or TIFF");
        return Err(Failure::new(ErrorCode::UnsupportedFormat, message));
    }
    let area = |page: &&Directory<'_>| {
        let side = |tag| page.value(tag).unwrap_or(0);
        side(tag::IMAGE_WIDTH).saturating_mul(side(tag::IMAGE_LENGTH))
    };
    let main = pages.iter().find(|page| is_main(page));
    let page = main.or_else(|| pages.iter().rev().max_by_key(area)).unwrap_or(first);
    Ok(*page)
}

/// The pages of the chain, each followed by its own pages (`SubIFDs`).
fn all_pages(file: File<'_>) -> Vec<Directory<'_>> {
    let mut pages = Vec::new();
    let mut seen = Vec::new();
    let mut next = file.first;
    while next != 0 && pages.len() < MAX_PAGES && !seen.contains(&next) {
        seen.push(next);
        let Some(page) = file.directory(next) else { break };
        pages.push(page);
        next = page.next;
        let Some(children) = page.field(tag::SUB_IFDS) else { continue };
        let offsets = (0..children.count().min(MAX_PAGES)).filter_map(|at| children.unsigned(at));
        let children = offsets.filter_map(|offset| file.directory(offset));
        pages.extend(children.take(MAX_PAGES - pages.len()));
    }
    pages
}

fn is_main(page: &Directory<'_>) -> bool {
    // Bit 0: a reduced version of another page. Bit 2: a transparency mask.
    let is_part = page.value(tag::NEW_SUBFILE_TYPE).is_some_and(|bits| bits & 0b101 != 0);
    // The field that this one replaced: 2 is a reduced version.
    let is_reduced = page.value(tag::SUBFILE_TYPE) == Some(2);
    !is_part && !is_reduced && page.value(tag::IMAGE_WIDTH).is_some()
}

/// Names the kind of raw file. Their first page is a thumbnail, and their sensor data are no picture yet.
fn raw_kind(bytes: &[u8], first: &Directory<'_>, pages: &[Directory<'_>]) -> Option<&'static str> {
    if pages.iter().any(|page| page.field(tag::DNG_VERSION).is_some()) {
        return Some("a DNG raw file");
    }
    // Canon writes its own signature after the header of TIFF.
    if bytes.get(8..10) == Some(b"CR") {
        return Some("a Canon CR2 raw file");
    }
    let is_one_of = |page: &Directory<'_>, tag, known: &[u64]| {
        page.value(tag).is_some_and(|value| known.contains(&value))
    };
    let is_raw = pages.iter().any(|page| {
        is_one_of(page, tag::PHOTOMETRIC, &RAW_PHOTOMETRIC)
            || is_one_of(page, tag::COMPRESSION, &RAW_COMPRESSION)
    });
    is_raw.then(|| {
        let make = first.field(tag::MAKE).map(|make| make.bytes().to_ascii_uppercase());
        let make = make.unwrap_or_default();
        let kinds: [(&[u8], &str); 8] = [
            (b"NIKON", "a Nikon NEF raw file"),
            (b"SONY", "a Sony ARW raw file"),
            (b"PENTAX", "a Pentax PEF raw file"),
            (b"RICOH", "a Pentax PEF raw file"),
            (b"SAMSUNG", "a Samsung SRW raw file"),
            (b"HASSELBLAD", "a Hasselblad 3FR raw file"),
            (b"PHASE ONE", "a Phase One IIQ raw file"),
            (b"EASTMAN KODAK", "a Kodak raw file"),
        ];
        let known = kinds.iter().find(|(name, _)| make.starts_with(name));
        known.map_or("a camera's raw file", |(_, kind)| kind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_fields_are_bounded() {
        // A directory whose children are 64 times itself.
        let mut children =
            b"II*\0\x08\0\0\0\x01\0\x4A\x01\x04\0\x40\0\0\0\x1A\0\0\0\0\0\0\0".to_vec();
        children.extend(8_u32.to_le_bytes().repeat(64));
        assert_eq!(all_pages(File::open(&children).expect("a TIFF")).len(), MAX_PAGES);
        // BigTIFFs with as many fields as a picture may have, and with one more.
        let pages = |fields: u64| {
            let mut bytes = b"II\x2B\0\x08\0\0\0\x10\0\0\0\0\0\0\0".to_vec();
            bytes.extend(fields.to_le_bytes());
            bytes.resize(bytes.len() + 20 * 5000, 0);
            all_pages(File::open(&bytes).expect("a TIFF")).len()
        };
        assert_eq!((pages(4096), pages(4097)), (1, 0));
    }
}
