//! Receives an upload: streams and hashes its bytes, stores them under their hash, or leaves nothing behind.
//!
//! The bytes are named once, when their hash is known and checked (ADR 17). Until then they are in a file with a
//! temporary name, or in the spool of a remote store.

use std::{io, path::Path, sync::Arc};

use object_store::{ObjectStoreExt, PutPayload};
use safelight_domain::ContentHash;

use super::{BlobError, BlobKey, Blobs, spool::Spool, upload_file::UploadFile};
use crate::{
    blocking::{blocking, blocking_steps},
    mark::confirm_folder,
    partial::Partial,
};

/// Bytes to buffer before a write to disk, because each write is a call on a blocking thread.
const WRITE_BYTES: usize = 256 * 1024;

/// Bytes per part sent to an object store. S3 requires at least 5 MiB for all but the last.
const PART_BYTES: u64 = 5 * 1024 * 1024;

/// An upload being received. Dropping it removes what it wrote.
pub struct Staging {
    pub(super) blobs: Blobs,
    bytes: u64,
    buffer: Vec<u8>,
    /// `None` while a blocking thread has it.
    file: Option<UploadFile>,
}

/// All bytes of an upload, not yet stored. Dropping them removes them.
pub struct StagedBytes {
    blobs: Blobs,
    file: UploadFile,
    sha256: ContentHash,
    bytes: u64,
}

/// The bytes of an upload that were durably stored under their hash, and a way to them if they are removed.
#[must_use = "a removal may take the bytes until the upload is committed; see `ensure_stored`"]
pub struct StoredBytes(StagedBytes);

impl Blobs {
    /// Starts to receive an upload's bytes. Leaves nothing behind unless they are stored.
    pub async fn stage(&self) -> Result<Staging, BlobError> {
        self.space.check(0).await?;
        let file = match (&self.spool, self.incoming.clone()) {
            (Some(Spool { folder, .. }), _) => {
                let folder = folder.clone();
                blocking(move || UploadFile::unnamed_in(&folder)).await?
            }
            (None, incoming) => {
                // Nothing is written below the mount point of a volume that is not mounted.
                self.in_own_folder(move || Ok(UploadFile::named_in(&incoming.unwrap_or_default())?))
                    .await?
            }
        };
        Ok(Staging { blobs: self.clone(), bytes: 0, buffer: Vec::new(), file: Some(file) })
    }

    /// Runs `work` on a thread for blocking work, if the folder of a local store is this installation's.
    async fn in_own_folder<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
    ) -> Result<T, BlobError> {
        let folder = self.folder().unwrap_or_default();
        let installation = self.owner.as_ref().map(|owner| owner.installation);
        blocking_steps(move || {
            confirm_folder(&folder, installation)?;
            work()
        })
        .await
    }
}

impl Staging {
    /// Adds the next bytes of the body.
    pub async fn write(&mut self, mut chunk: &[u8]) -> Result<(), BlobError> {
        self.bytes += chunk.len() as u64;
        while !chunk.is_empty() {
            let (first, rest) = chunk.split_at(chunk.len().min(WRITE_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(first);
            chunk = rest;
            if self.buffer.len() == WRITE_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// The number of bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Ends the upload, whose hash is known from here on.
    pub async fn end(mut self) -> Result<StagedBytes, BlobError> {
        self.flush().await?;
        let file = self.file.take().ok_or_else(lost)?;
        Ok(StagedBytes { blobs: self.blobs, sha256: file.hash(), bytes: self.bytes, file })
    }

    async fn flush(&mut self) -> Result<(), BlobError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.blobs.space.take(self.buffer.len() as u64).await?;
        let (mut file, buffer) =
            (self.file.take().ok_or_else(lost)?, std::mem::take(&mut self.buffer));
        let written = move || file.write(&buffer).map(|()| (file, buffer));
        let (file, mut buffer) = blocking(written).await?;
        buffer.clear();
        (self.file, self.buffer) = (Some(file), buffer);
        Ok(())
    }
}

/// A write failed before, and took the file with it.
fn lost() -> BlobError {
    BlobError::File(io::Error::other("an earlier write has failed"))
}

impl StagedBytes {
    /// Their hash.
    pub fn sha256(&self) -> ContentHash {
        self.sha256
    }

    /// Their number.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Stores the bytes durably under their hash, in place of what is there: it may be damaged, or old enough to be
    /// collected as garbage.
    pub async fn store(self) -> Result<StoredBytes, BlobError> {
        Ok(StoredBytes(if self.blobs.is_local() {
            self.name_file().await?
        } else {
            self.send().await?;
            self
        }))
    }

    async fn name_file(mut self) -> Result<Self, BlobError> {
        let to = self.blobs.folder().unwrap_or_default().join(self.key().path().as_ref());
        let shards = Arc::clone(&self.blobs.shards);
        let (blobs, incoming) = (self.blobs.clone(), self.blobs.incoming.clone());
        // A rename cannot leave the volume: the store that was confirmed is the one that has the bytes.
        let named = blobs.in_own_folder(move || {
            let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
            match (self.file.name(&to, &shards), incoming) {
                // A slow client, or a process that was suspended, took longer than unfinished files are kept.
                (Err(error), Some(incoming)) if is_gone(&error) => {
                    self.file = copy(&self.file, &incoming, self.sha256)?;
                    self.file.name(&to, &shards)?;
                    Ok((self, true))
                }
                (named, _) => Ok(named.map(|()| (self, false))?),
            }
        });
        let (named, is_copy) = named.await?;
        if let Ok(state) = named.file.state() {
            named.blobs.proven.insert(named.sha256, state);
        }
        if is_copy {
            // Or the store was unmounted meanwhile, and the copy went to what is in its place.
            named.blobs.confirm().await?;
        }
        Ok(named)
    }

    /// Sends the bytes to the object store. It may have been replaced meanwhile, and a store may acknowledge a write
    /// that it drops or cuts.
    async fn send(&self) -> Result<(), BlobError> {
        let path = self.key().path();
        let Some(spool) = &self.blobs.spool else { return Err(lost()) };
        // Nothing is written to another store: there nobody could tell whether the name was somebody's before.
        self.blobs.confirm().await?;
        let store = &self.blobs.store;
        // A permit is held while a part is in memory; the semaphore is never closed.
        if self.bytes <= PART_BYTES {
            let _permit = spool.parts.acquire().await;
            let body = self.read(0, self.bytes).await?;
            store.put(&path, PutPayload::from(body)).await?;
        } else {
            let mut upload = Partial::of(store.put_multipart(&path).await?);
            let mut sent = 0;
            while sent < self.bytes {
                let _permit = spool.parts.acquire().await;
                let part = self.read(sent, PART_BYTES.min(self.bytes - sent)).await?;
                sent += part.len() as u64;
                upload.write(part).await?;
            }
            upload.complete().await?;
        }
        let size = self.blobs.require_size(&path, self.bytes);
        tokio::try_join!(self.blobs.confirm(), size).map(|_| ())
    }

    async fn read(&self, offset: u64, count: u64) -> Result<bytes::Bytes, BlobError> {
        let file = self.file.reader();
        Ok(blocking(move || file.read(offset, count)).await?)
    }

    fn key(&self) -> BlobKey {
        BlobKey::Blob(self.sha256)
    }
}

impl StoredBytes {
    /// Their number.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Stores the bytes again if they are gone. Call it once the row that needs them is committed: a removal that
    /// takes the bytes later finds that row and restores them, and one that took them before is noticed here. Only
    /// then they are safe (ADR 17).
    pub async fn ensure_stored(self) -> Result<(), BlobError> {
        let Self(mut bytes) = self;
        let (blobs, key, size) = (bytes.blobs.clone(), bytes.key(), bytes.bytes);
        if blobs.size(&key).await? == Some(size) {
            return Ok(());
        }
        tracing::info!(blob = %bytes.sha256, "a removal took the bytes of an equal upload: stored again");
        if let Some(incoming) = blobs.incoming.clone() {
            bytes = blocking_steps(move || {
                bytes.file = copy(&bytes.file, &incoming, bytes.sha256)?;
                Ok(bytes)
            })
            .await?;
        }
        drop(bytes.store().await?);
        blobs.require_size(&key.path(), size).await
    }
}

/// A copy of an upload's file. It is read back from the disk, perhaps long after it was written, so its bytes are hashed
/// again.
fn copy(file: &UploadFile, incoming: &Path, sha256: ContentHash) -> Result<UploadFile, BlobError> {
    let copy = file.reader().copy_to(incoming)?;
    if copy.hash() == sha256 { Ok(copy) } else { Err(BlobError::Damaged) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::{open, store};

    #[tokio::test]
    async fn damaged_file_is_not_copied_under_the_hash_of_its_upload() {
        let folder = tempfile::tempdir().expect("folder");
        let stored = store(&open(&folder), b"picture").await;
        let path = folder.path().join(stored.0.key().path().as_ref());
        // In place: the open file has the same bytes. Then a removal takes it.
        fs::write(&path, b"Picture").expect("damaged");
        fs::remove_file(&path).expect("removed");
        let again = stored.ensure_stored().await;
        assert!(matches!(again, Err(BlobError::Damaged)), "{again:?}");
        assert!(!path.exists());
    }
}
