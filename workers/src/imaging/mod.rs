//! Pictures: bytes in, facts or renditions out. The only module that knows codecs.
//!
//! Everything here is plain, blocking CPU work on bytes in memory. Where it runs, and what happens
//! when a codec panics, crashes or hangs, is the business of [`crate::decoder`].
//!
//! What counts as damaged: a header that cannot be read, pixel data that a decoder refuses, and a
//! JPEG without its end marker. (The JPEG decoder would fill the missing part with grey; a picture
//! that is half grey is not what was uploaded.)

mod decode;
mod encode;
mod inspect;
mod jpeg;
mod metadata;
mod render;
#[cfg(test)]
mod tests;

use safelight_common::domain::{ErrorCode, Failure, ImageFormat};
use serde::{Deserialize, Serialize};

pub use inspect::{head_suffices, inspect};
pub use render::{Rendered, render};

/// What a picture may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Width × height at most, in pixels; checked from the header, before anything is allocated.
    pub max_pixels: u64,
}

impl Limits {
    /// Refuses a size that the header announces.
    fn check(self, width: u32, height: u32) -> Result<(), Failure> {
        let pixels = u64::from(width) * u64::from(height);
        if pixels == 0 {
            return Err(Failure::new(ErrorCode::CorruptImage, "the picture has no pixels"));
        }
        if pixels > self.max_pixels {
            return Err(Failure::new(
                ErrorCode::TooManyPixels,
                format!(
                    "{width} × {height} is {pixels} pixels, more than the limit of {}",
                    self.max_pixels
                ),
            ));
        }
        Ok(())
    }
}

/// The format, if it is one that can be decoded here.
fn decodable(bytes: &[u8]) -> Result<ImageFormat, Failure> {
    match ImageFormat::sniff(bytes) {
        Some(ImageFormat::Avif) => Err(Failure::new(
            ErrorCode::UnsupportedFormat,
            "AVIF pictures cannot be decoded by this server",
        )),
        Some(format) => Ok(format),
        None => Err(Failure::new(ErrorCode::NotAnImage, "the bytes are no known picture format")),
    }
}
