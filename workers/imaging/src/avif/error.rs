//! Why an AVIF is not decoded.

use safelight_domain::{ErrorCode, Failure};
use thiserror::Error;

use crate::failure::damaged;

/// Why a picture was not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum AvifError {
    /// The file is damaged, or is not an AVIF.
    #[error("the file is damaged")]
    Corrupt,
    /// The file may be valid, but needs a feature that this module lacks.
    #[error("unsupported feature: {0}")]
    Unsupported(&'static str),
    #[error("out of memory")]
    OutOfMemory,
}

impl From<AvifError> for Failure {
    fn from(error: AvifError) -> Self {
        match error {
            AvifError::Corrupt => damaged(),
            AvifError::Unsupported(what) => Self::new(
                ErrorCode::UnsupportedFormat,
                format!("the AVIF cannot be decoded here: {what}"),
            ),
            AvifError::OutOfMemory => {
                Self::new(ErrorCode::DecoderOutOfMemory, "decoding would take too much memory")
            }
        }
    }
}
