//! TIFF and `BigTIFF`: the first page that is a picture.
//!
//! ```text
//! directory ─ pages ─ page ─┬─ compression, fax, jpeg ─▶ chunk ─ samples ─▶ pixels ─▶ picture
//! (fields)    (which one)   └─ what is not decoded, by its name
//! ```
//!
//! The crate `tiff` is not used: it reads 32-bit integers as floats, drops long profiles, ignores
//! `FillOrder`, and knows no palette (`docs/upstream.md`).

mod blocks;
mod compression;
mod directory;
mod fax;
mod jpeg;
mod lab;
mod page;
mod pages;
mod pixels;
mod samples;

use image::metadata::Orientation;
use safelight_domain::{Failure, Size};

use crate::picture::Picture;
use directory::tag;
use page::Page;

/// What the page announces.
pub(super) struct Header {
    pub size: Size,
    /// `None` if the page does not say.
    pub orientation: Option<Orientation>,
    /// Memory for decoding, in bytes.
    pub memory: u64,
}

/// Reads the fields of the page to show, and rejects what cannot be decoded.
pub(super) fn header(bytes: &[u8]) -> Result<Header, Failure> {
    let page = Page::read(pages::main_page(bytes)?)?;
    let orientation = page.directory.value(tag::ORIENTATION);
    let orientation = orientation.and_then(|value| u8::try_from(value).ok());
    Ok(Header {
        size: Size { width: page.width, height: page.height },
        orientation: orientation.and_then(Orientation::from_exif),
        memory: pixels::decode_memory(&page),
    })
}

/// Decodes the page. The caller has checked its size and memory.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, Failure> {
    pixels::decode(&Page::read(pages::main_page(bytes)?)?)
}
