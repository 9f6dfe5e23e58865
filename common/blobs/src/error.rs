//! Errors of the blob store.

use std::error::Error;

/// A failed blob call.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// No such object.
    #[error("no such object")]
    NotFound,
    /// The disk is full.
    #[error("no space left for blobs")]
    Full,
    /// The object is larger than the caller allows.
    #[error("the object has {bytes} bytes, more than the allowed {limit}")]
    TooLarge {
        /// The object's size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The object does not have the size that was recorded.
    #[error("the object has {found} bytes instead of {expected}")]
    WrongSize {
        /// The object's size.
        found: u64,
        /// The recorded size.
        expected: u64,
    },
    /// The store did not respond, or responded with an error.
    #[error("the blob store failed: {0}")]
    Store(#[source] object_store::Error),
    /// A read timed out.
    #[error("the blob store does not respond")]
    Late,
    /// The local spool failed.
    #[error("the spool folder failed: {0}")]
    Spool(#[source] std::io::Error),
}

impl BlobError {
    /// Whether the store rejected the request, and will reject it again: the object does not exist, these keys may
    /// not read it, or its name is invalid. (Most responses can only be distinguished by their text.)
    pub fn is_refusal(&self) -> bool {
        const REJECTIONS: [&str; 7] = [
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
                .any(|error| REJECTIONS.iter().any(|text| error.to_string().contains(text))),
            Self::Full
            | Self::TooLarge { .. }
            | Self::WrongSize { .. }
            | Self::Late
            | Self::Spool(_) => false,
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

/// An error and the chain of its sources.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// Whether a full disk is among the causes.
fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    causes(error).filter_map(|e| e.downcast_ref::<std::io::Error>()).any(|e| {
        matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
    })
}
