//! Why an AVIF or HEIC is not decoded.

use safelight_domain::{ErrorCode, Failure};
use thiserror::Error;

use crate::failure::damaged;

/// Why a picture was not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum HeifError {
    /// The file is damaged, or is not HEIF.
    #[error("the file is damaged")]
    Corrupt,
    /// The file may be valid, but needs a feature that this module lacks.
    #[error("unsupported feature: {0}")]
    Unsupported(&'static str),
    #[error("out of memory")]
    OutOfMemory,
}

impl From<HeifError> for Failure {
    fn from(error: HeifError) -> Self {
        match error {
            HeifError::Corrupt => damaged(),
            HeifError::Unsupported(what) => Self::new(
                ErrorCode::UnsupportedFormat,
                format!("the picture cannot be decoded here: {what}"),
            ),
            HeifError::OutOfMemory => {
                Self::new(ErrorCode::DecoderOutOfMemory, "decoding would take too much memory")
            }
        }
    }
}
