//! Errors of the blob store.

use std::error::Error;

use safelight_domain::InstallationId;

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
    /// The object's bytes are not those that were stored, or not all of them.
    #[error("the object is damaged")]
    Damaged,
    /// This is not the store of this installation, so that nothing is known about its objects.
    #[error(transparent)]
    WrongStore(#[from] WrongStore),
    /// The store did not respond, or responded with an error.
    #[error("the blob store failed: {0}")]
    Store(#[source] object_store::Error),
    /// A read timed out.
    #[error("the blob store does not respond")]
    Late,
    /// A file of a local directory, or of the spool, failed.
    #[error("a local file failed: {0}")]
    File(#[source] std::io::Error),
}

/// A store that does not belong to this installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrongStore {
    /// It has no mark: it is not mounted, was emptied, or is another place.
    #[error("the blob store does not have this installation's mark (`installation.json`)")]
    Unmarked,
    /// It has the mark of another installation.
    #[error("the blob store belongs to another installation ({0})")]
    Foreign(InstallationId),
    /// A folder in it is another file system, for which the mark says nothing.
    #[error(
        "the folder `{0}` of the blob store is a volume of its own; the store must be one file system"
    )]
    Divided(&'static str),
    /// Its mark cannot be read.
    #[error("the mark of the blob store (`installation.json`) is damaged")]
    Damaged,
}

impl BlobError {
    /// The same error for another caller. Sources become text.
    pub(crate) fn duplicate(&self) -> Self {
        match self {
            Self::NotFound => Self::NotFound,
            Self::Full => Self::Full,
            Self::TooLarge { bytes, limit } => Self::TooLarge { bytes: *bytes, limit: *limit },
            Self::Damaged => Self::Damaged,
            Self::WrongStore(wrong) => Self::WrongStore(*wrong),
            Self::Late => Self::Late,
            Self::Store(error) => Self::Store(object_store::Error::Generic {
                store: "blobs",
                source: error.to_string().into(),
            }),
            Self::File(error) => Self::File(std::io::Error::new(error.kind(), error.to_string())),
        }
    }

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
            | Self::Damaged
            | Self::WrongStore(_)
            | Self::Late
            | Self::File(_) => false,
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
        if is_disk_full(&error) { Self::Full } else { Self::File(error) }
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
