//! Image processing: bytes in, facts or renditions out. The only crate that knows codecs.
//!
//! All of it is blocking CPU work on bytes in memory. The crate `safelight-decoder` decides where it
//! runs and contains a codec that panics, crashes or hangs.
//!
//! ```text
//! bytes ─ header ─ limits ─┬─ jpeg    ─ planes, scaled down while they are decoded ──┐
//!                          ├─ webp, heif, tiff, bmp, png ─ gray, RGB or RGBA ────────┤
//!                          └─ animation ─ frame by frame ─▶ animated WebP            │
//!                                                                                    ▼
//!     placeholder ◀── pyramid: large to small, each made from the one before; sRGB ◀─ picture
//!                       │ cropped to the focus, rotated upright, sharpened
//!                       ▼
//!                     encode: JPEG from planes; WebP, AVIF, PNG
//! ```
//!
//! A picture counts as damaged if its header cannot be read, if a decoder rejects its pixel data or has
//! to invent part of it, or if it is a JPEG without its end marker. (A picture that is half gray is not
//! what was uploaded.)

mod animation;
mod avif;
mod bmp;
mod canvas;
mod color;
mod encode;
mod failure;
mod focus;
mod geometry;
mod gif;
mod hdr;
mod header;
mod heic;
mod heif;
mod jpeg;
mod limits;
mod metadata;
mod orientation;
mod picture;
mod pixel_layout;
mod placeholder;
mod planes;
mod png;
mod pyramid;
mod render;
mod resize;
mod sharpen;
mod srgb;
#[cfg(test)]
mod tests;
mod tiff;
mod webp;

/// The types of the domain that the functions of this crate take and return.
pub use safelight_domain::{
    ErrorCode, Failure, Fit, Focus, Formats, Gps, ImageFacts, ImageFormat, Placeholder, Preset,
    PresetFormat, Presets, Rendition, Size,
};

pub use header::{head_suffices, inspect};
pub use limits::Limits;
pub use render::{Rendered, Renderer, Renditions};
