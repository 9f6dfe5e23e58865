//! What can go wrong with the bytes.

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
    /// The local spool failed.
    #[error("the spool folder failed: {0}")]
    Spool(#[source] std::io::Error),
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

/// Whether an I/O error of "no space left" is among the causes.
fn is_disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |e| e.source())
        .filter_map(|e| e.downcast_ref::<std::io::Error>())
        .any(|e| {
            matches!(e.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        })
}
