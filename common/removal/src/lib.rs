//! Removes bytes that images may share, for API nodes and workers alike (ADR 4).

mod guard;
mod remover;

use safelight_blobs::BlobError;
use safelight_store::StoreError;

pub use self::{guard::InstallationGuard, remover::Remover};

/// Why bytes could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemovalError {
    /// The database could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blob store failed.
    #[error(transparent)]
    Blobs(#[from] BlobError),
}
