//! HEIF (ISO/IEC 23008-12): the container of AVIF and HEIC.
//!
//! ```text
//! bytes ─▶ container   finds the picture's item and its alpha item; either may be a grid of tiles
//!          boxes       locates items and their data
//!          properties  reads size, colors and rotation of an item; `coding` how it is coded, `aperture` its crop
//!       ─▶ decode      has each item decoded: AV1 by `avif`, HEVC by `heic`
//!          grid        joins the tiles
//!       ─▶ convert     planes to 8-bit gray, RGB or RGBA; `matrix` has the coefficients, `bytes` is the fast path
//! ```
//!
//! The container is parsed here because the existing crates lack something: mp4parse exposes sizes, mirrors
//! and colors only through raw pointers, avif-parse does not expose them at all, and both know one codec. The
//! parser copies nothing and allocates no memory by sizes that the file announces. It indexes the properties,
//! and searches for every other box when it needs it.

pub(super) mod aperture;
pub(super) mod boxes;
mod bytes;
pub(super) mod coding;
pub(super) mod container;
pub(super) mod convert;
pub(super) mod decode;
pub(super) mod error;
pub(super) mod grid;
pub(super) mod matrix;
pub(super) mod planes;
pub(super) mod properties;
#[cfg(test)]
pub(super) mod tests;
