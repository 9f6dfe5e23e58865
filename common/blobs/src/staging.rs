//! Stages an upload in the store: streams and hashes it, and makes it durable or leaves nothing behind.

use std::io::SeekFrom;

use bytes::{Bytes, BytesMut};
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use safelight_domain::{ContentHash, ContentHasher, ImageId};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::{BlobError, BlobKey, Blobs, spool::Spool};
use crate::blocking::blocking;

/// Bytes to buffer before a write to disk, because each write is a call on a blocking thread.
const WRITE_BYTES: usize = 64 * 1024;

/// Bytes per part sent to an object store. S3 requires at least 5 MiB for all but the last.
const PART_BYTES: u64 = 5 * 1024 * 1024;

/// Bytes that are durably staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagedUpload {
    /// The image for which they are staged.
    pub image: ImageId,
    /// Their hash.
    pub sha256: ContentHash,
    /// Their number.
    pub bytes: u64,
}

/// An upload being received. Dropping it unfinished removes what it wrote.
pub struct Staging {
    pub(super) blobs: Blobs,
    image: ImageId,
    hasher: ContentHasher,
    bytes: u64,
    buffer: BytesMut,
    sink: Sink,
}

/// The destination of bytes while they arrive.
enum Sink {
    /// A file that gets its name when it is complete and synced.
    Local(Partial),
    /// An unnamed file first (see [`Spool`]).
    Spool { file: tokio::fs::File, spool: Spool },
}

/// A multipart upload that is aborted when dropped unfinished.
pub(super) struct Partial(Option<Box<dyn MultipartUpload>>);

impl Blobs {
    /// Starts to stage an upload's bytes. Leaves nothing behind unless it is finished.
    pub async fn stage(&self, image: ImageId) -> Result<Staging, BlobError> {
        self.space.check(0).await?;
        if self.is_local() {
            // Nothing is written below the mount point of a volume that is not mounted.
            self.confirm().await?;
        }
        Staging::begin(self.clone(), image).await
    }

    /// Whether the bytes are in this installation's store. It may have been unmounted or replaced meanwhile, and a
    /// store may acknowledge a write that it drops or cuts.
    async fn confirm_staged(&self, staged: &StagedUpload) -> Result<(), BlobError> {
        let path = BlobKey::Incoming(staged.image).path();
        let confirmed = if self.is_local() {
            // In this order: if it was mounted meanwhile, the file is not there.
            match self.confirm().await {
                Ok(()) => self.require_size(&path, staged.bytes).await,
                wrong => wrong,
            }
        } else {
            let size = self.require_size(&path, staged.bytes);
            tokio::try_join!(self.confirm(), size).map(|_| ())
        };
        if confirmed.is_err() {
            // Whichever store has them, they belong to no upload.
            let _ = self.store.delete(&path).await;
        }
        confirmed
    }
}

impl Staging {
    async fn begin(blobs: Blobs, image: ImageId) -> Result<Self, BlobError> {
        let sink = match blobs.spool.clone() {
            None => {
                let path = BlobKey::Incoming(image).path();
                Sink::Local(Partial(Some(blobs.store.put_multipart(&path).await?)))
            }
            Some(spool) => {
                let folder = spool.folder.clone();
                let file = blocking(move || tempfile::tempfile_in(folder)).await?;
                let mut file = tokio::fs::File::from_std(file);
                // The default is a buffer of 2 MiB for every upload in flight.
                file.set_max_buf_size(WRITE_BYTES);
                Sink::Spool { file, spool }
            }
        };
        let buffer = BytesMut::new();
        Ok(Self { blobs, image, hasher: ContentHasher::default(), bytes: 0, buffer, sink })
    }

    /// Adds the next bytes of the body.
    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), BlobError> {
        self.hasher.update(chunk);
        self.bytes += chunk.len() as u64;
        self.buffer.extend_from_slice(chunk);
        if self.buffer.len() >= WRITE_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// The number of bytes so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The hash of the bytes so far.
    pub fn hash(&self) -> ContentHash {
        self.hasher.clone().finish()
    }

    /// Makes everything durable. An error leaves nothing behind.
    pub async fn finish(mut self) -> Result<StagedUpload, BlobError> {
        self.flush().await?;
        match &mut self.sink {
            Sink::Local(partial) => partial.complete().await?,
            Sink::Spool { file, spool } => {
                file.flush().await?;
                send(file, self.bytes, spool, self.blobs.store.as_ref(), self.image).await?;
            }
        }
        let staged =
            StagedUpload { image: self.image, sha256: self.hasher.finish(), bytes: self.bytes };
        self.blobs.confirm_staged(&staged).await?;
        Ok(staged)
    }

    async fn flush(&mut self) -> Result<(), BlobError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let bytes = self.buffer.split().freeze();
        self.blobs.space.take(bytes.len() as u64).await?;
        match &mut self.sink {
            Sink::Local(partial) => partial.write(bytes).await,
            Sink::Spool { file, .. } => Ok(file.write_all(&bytes).await?),
        }
    }
}

impl Partial {
    pub(super) fn of(upload: Box<dyn MultipartUpload>) -> Self {
        Self(Some(upload))
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        match &mut self.0 {
            Some(upload) => Ok(upload.put_part(PutPayload::from(bytes)).await?),
            None => Ok(()),
        }
    }

    pub(super) async fn complete(&mut self) -> Result<(), BlobError> {
        if let Some(upload) = &mut self.0 {
            upload.complete().await?;
            self.0 = None;
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Without a runtime (at exit) nothing can run it, and the janitor removes the rest later.
        if let (Some(mut upload), Ok(runtime)) =
            (self.0.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(async move { upload.abort().await });
        }
    }
}

/// Sends a complete spooled body to the object store.
async fn send(
    file: &mut tokio::fs::File,
    bytes: u64,
    spool: &Spool,
    store: &dyn ObjectStore,
    image: ImageId,
) -> Result<(), BlobError> {
    let path = BlobKey::Incoming(image).path();
    file.seek(SeekFrom::Start(0)).await?;
    // The permit is held while a part is in memory; the semaphore is never closed.
    if bytes <= PART_BYTES {
        let _permit = spool.parts.acquire().await;
        let body = read_part(file, bytes).await?;
        store.put(&path, PutPayload::from(body)).await?;
        return Ok(());
    }
    let mut upload = Partial(Some(store.put_multipart(&path).await?));
    let mut left = bytes;
    while left > 0 {
        let _permit = spool.parts.acquire().await;
        let part = read_part(file, left.min(PART_BYTES)).await?;
        left -= part.len() as u64;
        upload.write(part).await?;
    }
    upload.complete().await
}

async fn read_part(file: &mut tokio::fs::File, bytes: u64) -> Result<Bytes, BlobError> {
    // `read_to_end` would double the buffer to detect the end.
    let mut part = vec![0; usize::try_from(bytes).unwrap_or(0)];
    file.read_exact(&mut part).await?;
    Ok(part.into())
}
