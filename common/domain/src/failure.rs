//! Failures of jobs, with codes and messages that clients can act on.

use serde::{Deserialize, Serialize};

use super::{JobKind, is_invisible_control, text_enum::text_enum};

text_enum! {
    /// The stable code of a job's failure. Only the code decides whether it is permanent.
    "error code" ErrorCode {
        /// The bytes are not an image in a supported format.
        NotAnImage = "not_an_image",
        /// An image in a variant that cannot be decoded.
        UnsupportedFormat = "unsupported_format",
        /// The image is damaged or cut short.
        CorruptImage = "corrupt_image",
        /// More pixels than the configured limit.
        TooManyPixels = "too_many_pixels",
        /// A side longer than the configured limit.
        SideTooLong = "side_too_long",
        /// An animation with more frames, or more pixels in all frames, than the configured limit.
        TooManyFrames = "too_many_frames",
        /// By its header, decoding would take more memory than the configured limit.
        TooMuchMemory = "too_much_memory",
        /// More bytes than the configured limit.
        TooLarge = "too_large",
        /// The blob store does not have the bytes.
        BlobMissing = "blob_missing",
        /// The bytes differ from those that were uploaded.
        BlobDamaged = "blob_damaged",
        /// Some images of a backfill failed, or its source could not be read to the end.
        BackfillIncomplete = "backfill_incomplete",
        /// The blob store did not respond, or responded with an error.
        StoreUnavailable = "store_unavailable",
        /// A caching proxy did not confirm that it removed a deleted image.
        ProxyUnavailable = "proxy_unavailable",
        /// The shared cache did not respond.
        CacheUnavailable = "cache_unavailable",
        /// The database did not respond.
        DatabaseUnavailable = "database_unavailable",
        /// The worker stopped renewing its lease: it crashed, hung or lost its network.
        LeaseLost = "lease_lost",
        /// The handler panicked.
        WorkerPanicked = "worker_panicked",
        /// The process that decoded the picture crashed.
        DecoderCrashed = "decoder_crashed",
        /// Decoding exceeded the time limit.
        DecoderTimedOut = "decoder_timed_out",
        /// Decoding exceeded the memory limit.
        DecoderOutOfMemory = "decoder_out_of_memory",
        /// The process that decoded the picture was killed from outside, for example because the machine ran out
        /// of memory.
        DecoderKilled = "decoder_killed",
    }
}

/// How often a failed job is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retries {
    /// Another attempt would end the same way.
    Never,
    /// Another attempt is likely to end the same way and is expensive: at most [`Retries::FEW`].
    Few,
    /// As long as the job has attempts left.
    All,
}

impl Retries {
    /// The number of attempts for [`Retries::Few`], including the first.
    pub const FEW: u32 = 3;

    /// The number of attempts of a job with `max_attempts`, including the first.
    pub fn attempts(self, max_attempts: u32) -> u32 {
        match self {
            Self::Never => 1,
            Self::Few => max_attempts.min(Self::FEW),
            Self::All => max_attempts,
        }
    }
}

impl ErrorCode {
    /// How often a job of `kind` with this failure is retried.
    pub const fn retries(self, kind: JobKind) -> Retries {
        match self {
            Self::NotAnImage
            | Self::UnsupportedFormat
            | Self::CorruptImage
            | Self::TooManyPixels
            | Self::SideTooLong
            | Self::TooManyFrames
            | Self::TooMuchMemory
            | Self::TooLarge => Retries::Never,
            // A verification has read them twice.
            Self::BlobDamaged if matches!(kind, JobKind::Verify) => Retries::Never,
            // Mostly caused by the picture, sometimes by a busy machine or by the kernel.
            Self::DecoderCrashed | Self::DecoderTimedOut | Self::DecoderOutOfMemory => Retries::Few,
            // A verification looks for just this, and a lagging store has caught up after a few attempts.
            Self::BlobMissing if matches!(kind, JobKind::Verify) => Retries::Few,
            // The store may not have caught up yet, and bytes may be damaged on the way.
            Self::BlobMissing
            | Self::BlobDamaged
            | Self::BackfillIncomplete
            | Self::StoreUnavailable
            | Self::ProxyUnavailable
            | Self::CacheUnavailable
            | Self::DatabaseUnavailable
            | Self::LeaseLost
            | Self::WorkerPanicked
            // The kernel chooses which process it kills, so the picture is probably not the cause.
            | Self::DecoderKilled => Retries::All,
        }
    }

    /// Whether the job failed because the original's bytes were missing or damaged. A later job may find them
    /// restored, whatever became of this one.
    pub const fn is_about_the_original(self) -> bool {
        matches!(self, Self::BlobMissing | Self::BlobDamaged)
    }

    /// Whether something failed that all jobs need. No job is to blame for that, so that the attempt does not count.
    pub const fn is_outage(self) -> bool {
        matches!(self, Self::StoreUnavailable | Self::DatabaseUnavailable)
    }

    /// Whether another attempt could end differently.
    pub const fn is_retryable(self) -> bool {
        // `Never` does not depend on the kind.
        !matches!(self.retries(JobKind::Write), Retries::Never)
    }
}

/// A failure as it is stored and shown: a stable code and a message for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Failure {
    /// The kind of failure.
    pub code: ErrorCode,
    /// What happened, without internals (no paths, no SQL).
    pub message: String,
}

impl Failure {
    /// A failure with a message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The same with a message that can be stored and shown, whatever a process that reads untrusted data has put
    /// into it: of at most [`MAX_MESSAGE_CHARS`] characters, none of which controls a terminal or turns text around.
    #[must_use]
    pub fn cleaned(self) -> Self {
        Self { message: clean(&self.message), ..self }
    }
}

/// Maximum length of a cleaned message in characters, including the mark of what was cut.
pub const MAX_MESSAGE_CHARS: usize = 300;

/// A text of unknown origin as a message for people; see [`Failure::cleaned`].
pub fn clean(text: &str) -> String {
    let shown = |c: char| if is_invisible_control(c) { '\u{fffd}' } else { c };
    let mut message: String = text.chars().take(MAX_MESSAGE_CHARS).map(shown).collect();
    if text.chars().nth(MAX_MESSAGE_CHARS).is_some() {
        message.pop();
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crashing_pictures_get_few_attempts_and_never_more_than_the_job_has() {
        assert_eq!(ErrorCode::CorruptImage.retries(JobKind::Thumbnail).attempts(8), 1);
        assert_eq!(ErrorCode::DecoderCrashed.retries(JobKind::Thumbnail).attempts(8), 3);
        assert_eq!(ErrorCode::DecoderCrashed.retries(JobKind::Thumbnail).attempts(2), 2);
        assert_eq!(ErrorCode::DecoderKilled.retries(JobKind::Thumbnail).attempts(8), 8);
        assert_eq!(ErrorCode::StoreUnavailable.retries(JobKind::Thumbnail).attempts(8), 8);
    }

    #[test]
    fn cleaned_message_is_short_and_controls_nothing() {
        let message = |text: &str| Failure::new(ErrorCode::CorruptImage, text).cleaned().message;
        assert_eq!(message("12 × 8 pixels"), "12 × 8 pixels");
        assert_eq!(message("a\x1b[2Jb\n\u{202e}gpj.exe\0"), "a�[2Jb��gpj.exe�");
        assert_eq!(message(&"ü".repeat(MAX_MESSAGE_CHARS)), "ü".repeat(MAX_MESSAGE_CHARS));
        let cut = message(&"ü".repeat(1 << 20));
        assert_eq!(cut.chars().count(), MAX_MESSAGE_CHARS);
        assert!(cut.ends_with("ü…"));
    }
}
