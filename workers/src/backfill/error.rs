//! Why a step of a backfill failed.

use std::error::Error;

use safelight_blobs::BlobError;
use safelight_removal::RemovalError;
use safelight_store::StoreError;

use super::source::SourceError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BackfillError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blobs(#[from] BlobError),
    #[error(transparent)]
    Removal(#[from] RemovalError),
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// The text of an error with its causes, for a report.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
