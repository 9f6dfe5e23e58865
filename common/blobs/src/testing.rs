//! A store for unit tests.

use tempfile::TempDir;

use super::{BlobLocation, Blobs, StoredBytes};

/// A local store in `folder`.
pub(crate) fn open(folder: &TempDir) -> Blobs {
    let location = BlobLocation::Folder(folder.path().to_owned());
    Blobs::open(&location, folder.path()).expect("a store")
}

/// Stores `bytes` as an upload.
pub(crate) async fn store(blobs: &Blobs, bytes: &[u8]) -> StoredBytes {
    let mut staging = blobs.stage().await.expect("staged");
    staging.write(bytes).await.expect("written");
    staging.end().await.expect("ended").store().await.expect("stored")
}
