//! The reserve that uploads and renditions leave in the blob store.

use std::path::Path;

use super::{BlobError, Blobs, StoragePlace, free_space::FreeSpace};

impl Blobs {
    /// Limits uploads and renditions, so that at least `min_free_bytes` stay free where they are stored (at most
    /// a tenth of the file system; 0 for no limit). For uploads that includes the folder of the `database`, if
    /// it is a file.
    #[must_use]
    pub fn with_reserve(mut self, min_free_bytes: u64, database: Option<&Path>) -> Self {
        let local = self.incoming.clone().map(|folder| (StoragePlace::Blobs, folder));
        let spool = self.spool.as_ref().map(|spool| (StoragePlace::Spool, spool.folder.clone()));
        let database = database.map(|folder| (StoragePlace::Database, folder.to_owned()));
        let places = local.into_iter().chain(spool).chain(database);
        self.space = FreeSpace::new(places, min_free_bytes);
        self
    }

    /// Fails with [`BlobError::Full`] if an upload of `bytes` would not leave the reserve.
    pub async fn check_space(&self, bytes: u64) -> Result<(), BlobError> {
        self.space.check(bytes).await
    }

    /// The free bytes of each file system that uploads fill. Leaves out those that cannot be measured.
    pub async fn free_bytes(&self) -> Vec<(StoragePlace, u64)> {
        self.space.measure().await
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use safelight_domain::ContentHash;
    use tempfile::TempDir;

    use super::*;
    use crate::{BlobKey, BlobLocation};

    fn open(temporary: &TempDir) -> Blobs {
        let local = BlobLocation::Folder(temporary.path().join("blobs"));
        Blobs::open(&local, &temporary.path().join("spool")).expect("a store")
    }

    #[tokio::test]
    async fn measured_places_are_those_that_uploads_fill() {
        let temporary = TempDir::new().expect("a folder");
        let blobs = open(&temporary);
        assert_eq!(blobs.free_bytes().await, [], "without a reserve nothing is measured");
        let blobs = blobs.with_reserve(1, Some(temporary.path()));
        let found = blobs.free_bytes().await;
        let places: Vec<StoragePlace> = found.iter().map(|(place, _)| *place).collect();
        assert_eq!(places, [StoragePlace::Blobs, StoragePlace::Database]);
        blobs.check_space(0).await.expect("space");
        let error = blobs.check_space(u64::MAX / 2).await.expect_err("no space for that much");
        assert!(matches!(error, BlobError::Full), "{error:?}");
    }

    #[tokio::test]
    async fn uploads_and_renditions_leave_the_reserve_and_deletions_use_it() {
        let temporary = TempDir::new().expect("a folder");
        let blobs = open(&temporary);
        let mut before = blobs.stage().await.expect("a reserve of nothing");
        let mut full = blobs.clone();
        full.space = FreeSpace::all_reserved(temporary.path().to_owned());
        let key = BlobKey::Blob(ContentHash::of(b"x"));
        let results = [
            full.stage().await.map(drop),
            full.put(&key, Bytes::from_static(b"x")).await,
            full.check_writable().await,
        ];
        for result in results {
            assert!(matches!(result, Err(BlobError::Full)), "{result:?}");
        }
        before.write(b"x").await.expect("buffered");
        let staged = before.end().await.expect("staged");
        drop(staged.store().await.expect("stored"));
        full.trash(std::slice::from_ref(&key)).await.expect("moved");
        full.delete(&key).await.expect("deleted");
    }

    #[tokio::test]
    async fn upload_that_reaches_the_reserve_is_full_and_leaves_nothing() {
        let temporary = TempDir::new().expect("a folder");
        let blobs = open(&temporary);
        let mut staging = blobs.stage().await.expect("a reserve of nothing");
        staging.write(&vec![0; 400 << 10]).await.expect("the same");
        staging.blobs.space = FreeSpace::all_reserved(temporary.path().to_owned());
        let error = staging.write(&vec![0; 400 << 10]).await.expect_err("no space");
        assert!(matches!(error, BlobError::Full), "{error:?}");
        drop(staging);
        let incoming = temporary.path().join("blobs/incoming");
        while std::fs::read_dir(&incoming).expect("a folder").count() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
