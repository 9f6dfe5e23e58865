//! Why a job failed, in words that a client can act on.

use serde::{Deserialize, Serialize};

use super::{JobKind, text_enum::text_enum};

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
        /// More pixels than the configured limit.
        TooManyPixels = "too_many_pixels",
        /// A side longer than the configured limit.
        SideTooLong = "side_too_long",
        /// An animation of more frames, or of more pixels over all frames, than the limit.
        TooManyFrames = "too_many_frames",
        /// The header announces a picture that takes more memory than the configured limit.
        TooMuchMemory = "too_much_memory",
        /// More bytes than the configured limit.
        TooLarge = "too_large",
        /// The bytes are in no place where they should be.
        BlobMissing = "blob_missing",
        /// The bytes are not those that were stored.
        BlobDamaged = "blob_damaged",
        /// Of a backfill: some of its images failed, or its source could not be read to the end.
        BackfillIncomplete = "backfill_incomplete",
        /// The blob store did not answer or refused.
        StoreUnavailable = "store_unavailable",
        /// A caching proxy did not confirm that it has a deleted image no more.
        ProxyUnavailable = "proxy_unavailable",
        /// The shared cache did not answer.
        CacheUnavailable = "cache_unavailable",
        /// The database did not answer.
        DatabaseUnavailable = "database_unavailable",
        /// The worker stopped renewing its lease: it crashed, hung or lost its network.
        LeaseLost = "lease_lost",
        /// The handler panicked.
        WorkerPanicked = "worker_panicked",
        /// The process that decoded the picture died of it.
        DecoderCrashed = "decoder_crashed",
        /// Decoding took more time than a picture may take.
        DecoderTimedOut = "decoder_timed_out",
        /// Decoding took more memory than a picture may take.
        DecoderOutOfMemory = "decoder_out_of_memory",
    }
}

/// How often a failed job is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retries {
    /// Another attempt would end the same way.
    Never,
    /// Another attempt is likely to end the same way, and each is dear: [`Retries::FEW`] at most.
    Few,
    /// For as long as the job has attempts left.
    All,
}

impl Retries {
    /// Attempts in all, the first included, of a job that may be tried again few times.
    pub const FEW: u32 = 3;

    /// Attempts in all, the first included, of a job that has `max_attempts`.
    pub fn attempts(self, max_attempts: u32) -> u32 {
        match self {
            Self::Never => 1,
            Self::Few => max_attempts.min(Self::FEW),
            Self::All => max_attempts,
        }
    }
}

impl ErrorCode {
    /// How often a job of `kind` that failed like this is tried again.
    pub const fn retries(self, kind: JobKind) -> Retries {
        match self {
            Self::NotAnImage
            | Self::UnsupportedFormat
            | Self::CorruptImage
            | Self::TooManyPixels
            | Self::SideTooLong
            | Self::TooManyFrames
            | Self::TooMuchMemory
            | Self::TooLarge
            | Self::BlobDamaged => Retries::Never,
            // Mostly the picture's doing, sometimes that of a busy machine or of the kernel.
            Self::DecoderCrashed | Self::DecoderTimedOut | Self::DecoderOutOfMemory => Retries::Few,
            // A verification asks just whether it is there: a store that lags has caught up by a few attempts.
            Self::BlobMissing if matches!(kind, JobKind::Verify) => Retries::Few,
            // A missing blob may be a store that has not caught up; it ends by attempts.
            Self::BlobMissing
            | Self::BackfillIncomplete
            | Self::StoreUnavailable
            | Self::ProxyUnavailable
            | Self::CacheUnavailable
            | Self::DatabaseUnavailable
            | Self::LeaseLost
            | Self::WorkerPanicked => Retries::All,
        }
    }

    /// Whether another attempt could end differently.
    pub const fn is_retryable(self) -> bool {
        // What never can, cannot whatever the kind.
        !matches!(self.retries(JobKind::Write), Retries::Never)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poison_gets_few_attempts_and_never_more_than_the_job_has() {
        assert_eq!(ErrorCode::CorruptImage.retries(JobKind::Thumbnail).attempts(8), 1);
        assert_eq!(ErrorCode::DecoderCrashed.retries(JobKind::Thumbnail).attempts(8), 3);
        assert_eq!(ErrorCode::DecoderCrashed.retries(JobKind::Thumbnail).attempts(2), 2);
        assert_eq!(ErrorCode::StoreUnavailable.retries(JobKind::Thumbnail).attempts(8), 8);
    }
}
