//! Pictures: bytes in, facts or renditions out. The only module that knows codecs.
//!
//! Everything here is plain, blocking CPU work on bytes in memory. Where it runs, and what happens
//! when a codec panics, crashes or hangs, is the business of [`safelight_decoder`].
//!
//! ```text
//! bytes ─ header ─ limits ─┬─ jpeg    ─ planes, made smaller while they are decoded ─┐
//!                          ├─ webp, avif, raster ─ grey, RGB or RGBA ────────────────┤
//!                          └─ animation ─ frame by frame ─▶ animated WebP            │
//!                                                                                    ▼
//!     placeholder ◀── pyramid: from large to small, each of the one before; sRGB ◀── picture
//!                       │ cut to the focus, turned upright, sharpened
//!                       ▼
//!                     encode: JPEG from planes; WebP, AVIF, PNG
//! ```
//!
//! What counts as damaged: a header that cannot be read, pixel data that a decoder refuses or of
//! which it had to make up a part, and a JPEG without its end marker. (A picture that is half grey
//! is not what was uploaded.)

mod animation;
mod avif;
mod colour;
mod encode;
mod focus;
mod geometry;
mod header;
mod jpeg;
mod limits;
mod metadata;
mod picture;
mod placeholder;
mod planes;
mod pyramid;
mod raster;
mod render;
mod resize;
mod sharpen;
#[cfg(test)]
mod tests;
mod turn;
mod webp;

use safelight_domain::{ErrorCode, Failure};

pub use header::{head_suffices, inspect};
pub use limits::Limits;
pub use render::{Rendered, Renderer, Renditions};

/// What cannot happen with a picture that was decoded and resized here, whatever its bytes: a bug,
/// which counts as a panic does.
fn bug(error: impl std::fmt::Display) -> Failure {
    tracing::error!(%error, "a codec or the resizer refused its own kind of picture");
    Failure::new(ErrorCode::WorkerPanicked, "the rendition could not be made")
}
