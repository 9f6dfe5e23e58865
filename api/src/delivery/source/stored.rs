//! What is known of an object before it is read, and why it cannot be read.

use std::sync::Arc;

use safelight_blobs::{BlobError, BlobKey};
use safelight_domain::{CacheKey, ContentHash, Owner};

use crate::http::problem::{Problem, ProblemCode};

/// An object that can be read: where it is stored, and what its bytes must be.
#[derive(Debug, Clone)]
pub struct StoredObject {
    /// Its name in the store, where equal bytes are one.
    pub key: BlobKey,
    /// Its name in the caches, where equal bytes of two owners are two objects.
    pub cached: CacheKey,
    /// The hash of its bytes.
    pub sha256: ContentHash,
    /// How many there are.
    pub bytes: u64,
}

/// Why an object cannot be read. All requests that waited for it get the same error.
#[derive(Debug, Clone)]
pub enum ReadError {
    /// It is missing in the store, or damaged.
    Damaged(&'static str),
    /// The store failed.
    Store(Arc<BlobError>),
    /// Reading it panicked.
    Panicked,
}

impl StoredObject {
    /// What lies under `key` in the store, as `owner`'s.
    pub fn new(owner: &Owner, key: BlobKey, sha256: ContentHash, bytes: u64) -> Self {
        Self { cached: CacheKey::of(owner, &sha256), key, sha256, bytes }
    }

    /// A read found the object to be damaged in this way.
    pub fn damaged(&self, how: &'static str) -> ReadError {
        tracing::warn!(path = %self.key.path(), "a read found a blob to be {how}");
        ReadError::Damaged(how)
    }

    /// Whether the object is a rendition, which can be made again.
    pub fn is_rendition(&self) -> bool {
        matches!(self.key, BlobKey::Rendition { .. })
    }

    /// What a failure of the store means, given that the object and its size are in the database.
    pub fn failed(&self, error: BlobError) -> ReadError {
        match error {
            BlobError::NotFound => self.damaged("missing"),
            BlobError::TooLarge { .. } => self.damaged("of the wrong size"),
            BlobError::Damaged => self.damaged("damaged"),
            error => ReadError::Store(Arc::new(error)),
        }
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged(how) => {
                Self::new(ProblemCode::BlobDamaged, format!("The stored bytes are {how}."))
                    .hint("uploading the same picture again repairs it")
            }
            ReadError::Store(error) => Self::from(&*error),
            ReadError::Panicked => Self::internal(&"reading a blob panicked"),
        }
    }
}
