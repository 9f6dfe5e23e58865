//! Why bytes could not be removed.

use safelight_blobs::BlobError;
use safelight_store::StoreError;

use super::purge::PurgeError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RemovalError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blobs(#[from] BlobError),
    #[error(transparent)]
    Purge(#[from] PurgeError),
}
