//! Why bytes could not be removed.

use safelight_blobs::BlobError;
use safelight_store::StoreError;

/// Why bytes could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemovalError {
    /// The database could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blob store failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
    /// Another removal or a collection of garbage may be moving them at this moment.
    #[error("another removal is moving these bytes")]
    BeingMoved,
}
