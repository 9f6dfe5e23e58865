//! What can go wrong with the bytes.

use std::error::Error;

/// A failed blob call.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// No such object.
    #[error("no such object")]
    NotFound,
    /// No space left on the disk.
    #[error("no space left for blobs")]
    Full,
    /// More bytes than the caller allowed.
    #[error("the object has {bytes} bytes, more than the {limit} expected")]
    TooLarge {
        /// What there is.
        bytes: u64,
        /// What was allowed.
        limit: u64,
    },
    /// The store did not answer, or refused.
    #[error("the blob store failed: {0}")]
    Store(#[source] object_store::Error),
    /// The store let a read wait for too long.
    #[error("the blob store does not answer")]
    Late,
    /// The local spool failed.
    #[error("the spool folder failed: {0}")]
    Spool(#[source] std::io::Error),
}

impl BlobError {
    /// Whether the store answered, and will answer the same again: there is no such thing, it may not be
    /// read with these keys, or it cannot be asked for. (Most answers are known by their text alone.)
    pub fn is_refusal(&self) -> bool {
        const ANSWERS: [&str; 7] = [
            "400 Bad Request",
            "401 Unauthorized",
            "403 Forbidden",
            "404 Not Found",
            "405 Method Not Allowed",
            "NoSuchBucket",
            "InvalidBucketName",
        ];
        match self {
            Self::NotFound | Self::Store(object_store::Error::InvalidPath { .. }) => true,
            Self::Store(error) => causes(error)
                .any(|error| ANSWERS.iter().any(|answer| error.to_string().contains(answer))),
            Self::Full | Self::TooLarge { .. } | Self::Late | Self::Spool(_) => false,
        }
    }
}

impl From<object_store::Error> for BlobError {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { .. } => Self::NotFound,
            other if is_disk_full(&other) => Self::Full,
            other => Self::Store(other),
        }
    }
}

impl From<std::io::Error> for BlobError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::StorageFull {
            Self::Full
        } else {
            Self::Spool(error)
        }
    }
}

/// An error, what caused it, and so on.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// Whether an I/O error of "no space left" is among the causes.
fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    causes(error).filter_map(|e| e.downcast_ref::<std::io::Error>()).any(|e| {
        matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
    })
}
