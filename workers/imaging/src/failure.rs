//! Failures that several codecs report with the same message.

use std::fmt::Display;

use safelight_domain::{ErrorCode, Failure};

/// The bytes start like a picture, but the rest is invalid.
pub(super) fn damaged() -> Failure {
    Failure::new(ErrorCode::CorruptImage, "the picture is damaged or cut short")
}

/// The file asks for more memory than a picture of its size needs.
pub(super) fn too_much_memory() -> Failure {
    Failure::new(
        ErrorCode::TooMuchMemory,
        "decoding the picture would take more memory than its size allows",
    )
}

/// The format is known, this variant of it is not.
pub(super) fn unsupported_variant() -> Failure {
    Failure::new(
        ErrorCode::UnsupportedFormat,
        "the picture uses a variant of its format that cannot be decoded",
    )
}

/// "a TIFF with … cannot be decoded": the format is known, and so is what of it is not decoded.
pub(super) fn unsupported(format: &str, what: &str) -> Failure {
    Failure::new(ErrorCode::UnsupportedFormat, format!("a {format} with {what} cannot be decoded"))
}

/// An error that no picture can cause once it is decoded and resized here. It is a bug, and counts
/// like a panic.
pub(super) fn bug(error: impl Display) -> Failure {
    tracing::error!(%error, "a codec or the resizer rejected pixels that this crate produced");
    Failure::new(ErrorCode::WorkerPanicked, "the rendition could not be made")
}
