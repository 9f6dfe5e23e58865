//! Why a job failed, in words that a client can act on.

use serde::{Deserialize, Serialize};

use super::text_enum::text_enum;

text_enum! {
    /// The stable code of a job's failure. Whether it is permanent is a property of the code,
    /// decided here and nowhere else.
    "error code" ErrorCode {
        /// The bytes are no image that Safelight reads.
        NotAnImage = "not_an_image",
        /// An image, but of a format that cannot be decoded here.
        UnsupportedFormat = "unsupported_format",
        /// The header is fine, the rest is damaged or cut short.
        CorruptImage = "corrupt_image",
        /// More pixels, or longer sides, than the configured limit.
        TooManyPixels = "too_many_pixels",
        /// The bytes are in no place where they should be.
        BlobMissing = "blob_missing",
        /// The blob store did not answer or refused.
        StoreUnavailable = "store_unavailable",
        /// The database did not answer.
        DatabaseUnavailable = "database_unavailable",
        /// The worker stopped renewing its lease: it crashed, hung or lost its network.
        LeaseLost = "lease_lost",
        /// The handler panicked.
        WorkerPanicked = "worker_panicked",
    }
}

impl ErrorCode {
    /// Whether another attempt could end differently.
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::NotAnImage
            | Self::UnsupportedFormat
            | Self::CorruptImage
            | Self::TooManyPixels => false,
            // A missing blob may be a store that has not caught up; it ends by attempts.
            Self::BlobMissing
            | Self::StoreUnavailable
            | Self::DatabaseUnavailable
            | Self::LeaseLost
            | Self::WorkerPanicked => true,
        }
    }
}

/// A failure as it is stored and shown: a stable code and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Failure {
    /// What kind of failure.
    pub code: ErrorCode,
    /// What happened, without internals (no paths, no SQL).
    pub message: String,
}

impl Failure {
    /// A failure with its sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
