//! Whether a store has the bytes that the images of a snapshot need.

use safelight_blobs::{BlobKey, Blobs};
use safelight_domain::ContentHash;
use safelight_store_sql::{BytesState, NeededBytes};

use super::{contents::Contents, merge::Walk};
use crate::error::CommandError;

/// The bytes of a snapshot that a store lacks, one by one.
pub struct Missing<'a> {
    store: &'a Blobs,
    contents: Contents,
    walk: Walk,
    /// The blob that the walk is at: its hash and size.
    blob: Option<(ContentHash, u64)>,
    last: Option<ContentHash>,
}

impl<'a> Missing<'a> {
    /// Compares the list `contents` with `store`.
    pub fn new(store: &'a Blobs, contents: Contents) -> Self {
        let walk = Walk::new(store, false);
        Self { store, contents, walk, blob: None, last: None }
    }

    /// The next bytes that the store lacks, or has in another size. Each hash comes once, apart from failed uploads.
    pub async fn next(&mut self) -> Result<Option<NeededBytes>, CommandError> {
        while let Some(needed) = self.contents.next().await.map_err(CommandError::failed)? {
            if self.last == Some(needed.sha256) || self.has_blob(&needed).await? {
                continue;
            }
            let staged = BlobKey::Incoming(needed.image);
            if needed.state != BytesState::Stored
                && self.store.size(&staged).await.map_err(CommandError::failed)?
                    == Some(needed.bytes)
            {
                continue;
            }
            // An image with the same bytes, but with more right to them, must not be left out after it.
            if needed.state != BytesState::Failed {
                self.last = Some(needed.sha256);
            }
            return Ok(Some(needed));
        }
        Ok(None)
    }

    async fn has_blob(&mut self, needed: &NeededBytes) -> Result<bool, CommandError> {
        while self.blob.is_none_or(|(hash, _)| hash < needed.sha256) {
            let Some(object) = self.walk.next().await.map_err(CommandError::failed)? else {
                return Ok(false);
            };
            if let Some(BlobKey::Blob(hash)) = object.key {
                self.blob = Some((hash, object.bytes));
            }
        }
        Ok(self.blob == Some((needed.sha256, needed.bytes)))
    }
}

#[cfg(test)]
mod tests {
    use safelight_blobs::BlobLocation;
    use safelight_domain::ImageId;

    use super::*;
    use crate::backup::contents::ContentsWriter;

    #[tokio::test]
    async fn failed_upload_does_not_hide_that_an_image_lacks_the_same_bytes() {
        let folder = tempfile::tempdir().expect("folder");
        let location = BlobLocation::Folder(folder.path().to_owned());
        let blobs = Blobs::open(&location, folder.path()).expect("opened");
        let with =
            |image, state| NeededBytes { sha256: ContentHash::of(b"x"), bytes: 1, image, state };
        let failed = with(ImageId::new(), BytesState::Failed);
        let stored = with(ImageId::new(), BytesState::Stored);
        let other = with(ImageId::new(), BytesState::Stored);
        let mut writer = ContentsWriter::create(&folder.path().join("list")).expect("created");
        for needed in [&failed, &stored, &other] {
            writer.add(needed).expect("written");
        }
        writer.finish().expect("written");
        let lacking = async || {
            let contents = Contents::open(&blobs, "list").await.expect("opened");
            let mut missing = Missing::new(&blobs, contents);
            let mut found = Vec::new();
            while let Some(needed) = missing.next().await.expect("compared") {
                found.push(needed);
            }
            found
        };
        assert_eq!(lacking().await, [failed, stored]);
        let staged = BlobKey::Incoming(failed.image);
        blobs.put(&staged, b"x".to_vec().into()).await.expect("stored");
        assert_eq!(lacking().await, [stored]);
        let blob = BlobKey::Blob(stored.sha256);
        blobs.put(&blob, b"x".to_vec().into()).await.expect("stored");
        assert_eq!(lacking().await, []);
    }
}
