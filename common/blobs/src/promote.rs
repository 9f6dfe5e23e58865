//! Proves that the bytes of an upload are there. Those that a node of the version before staged are stored under
//! their hash: compared with it first, so that what is stored under a hash has that hash.

use std::{
    fs::File,
    io::{self, Read},
};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use object_store::GetResultPayload;
use safelight_domain::{ContentHash, ContentHasher, ImageId};

use super::{BlobError, BlobKey, Blobs};
use crate::{blocking::blocking, time_limits::with_stall_timeout};

/// Bytes read from a file at once.
const READ_BYTES: usize = 256 * 1024;

/// An upload whose bytes are under their hash, or were staged for its image by a node of the version before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagedUpload {
    /// The image for which they are staged.
    pub image: ImageId,
    /// Their hash.
    pub sha256: ContentHash,
    /// Their number.
    pub bytes: u64,
}

/// What a whole read of an object found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// The hash of the bytes.
    pub sha256: ContentHash,
    /// How many there are.
    pub bytes: u64,
    /// The first of them, as many as were asked for.
    pub head: Bytes,
}

/// An upload whose bytes were read to their end, and are those that were uploaded.
#[derive(Debug)]
pub struct VerifiedUpload {
    upload: StagedUpload,
    /// Whether the good bytes are already stored under their hash.
    is_stored: bool,
    /// The first bytes, as many as were asked for.
    pub head: Bytes,
}

impl Blobs {
    /// Reads a whole object, and returns its hash, its size and its first `head` bytes.
    pub async fn digest(&self, key: &BlobKey, head: usize) -> Result<Digest, BlobError> {
        match self.get(key, None).await?.payload {
            GetResultPayload::File(file, _) => Ok(blocking(move || digest_file(file, head)).await?),
            GetResultPayload::Stream(stream) => {
                let mut stream = with_stall_timeout(stream);
                let mut digesting = Digesting::new(head);
                while let Some(chunk) = stream.try_next().await? {
                    digesting.update(&chunk);
                }
                Ok(digesting.finish())
            }
        }
    }

    /// Reads the bytes of an upload, stored or staged, until a copy is found that is good. Fails with
    /// [`BlobError::Damaged`] if there are only others, and with [`BlobError::NotFound`] if there are none. A stored
    /// file that this process has hashed a moment ago is not read to its end.
    pub async fn verify_upload(
        &self,
        upload: &StagedUpload,
        head: usize,
    ) -> Result<VerifiedUpload, BlobError> {
        if let Some(head) = self.head_of_proven(upload.sha256, upload.bytes, head).await {
            return Ok(VerifiedUpload { upload: *upload, is_stored: true, head });
        }
        self.find_upload(upload, head).await
    }

    async fn find_upload(
        &self,
        upload: &StagedUpload,
        head: usize,
    ) -> Result<VerifiedUpload, BlobError> {
        let mut last = BlobError::NotFound;
        // The first again, also because damage may be on the way.
        for key in BlobKey::of_upload(upload.image, upload.sha256) {
            match self.digest(&key, head).await {
                Ok(found) if (found.sha256, found.bytes) == (upload.sha256, upload.bytes) => {
                    let is_stored = key.blob().is_some();
                    return Ok(VerifiedUpload { upload: *upload, is_stored, head: found.head });
                }
                Ok(_) => last = BlobError::Damaged,
                Err(BlobError::NotFound) => {}
                Err(wrong @ BlobError::WrongStore(_)) => return Err(wrong),
                // A file that cannot be read must not hide a good copy.
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// [`Blobs::verify_upload`] and [`Blobs::store_verified`], but reads every byte.
    pub async fn promote(&self, upload: &StagedUpload) -> Result<(), BlobError> {
        self.store_verified(&self.find_upload(upload, 0).await?).await
    }

    /// Stores the bytes of an upload under their hash, in place of what is there, which may be damaged; unless the
    /// good copy is that one. Idempotent. (The janitor removes a staged copy that is left.)
    pub async fn store_verified(&self, verified: &VerifiedUpload) -> Result<(), BlobError> {
        let upload = &verified.upload;
        let (staged, blob) = (BlobKey::Incoming(upload.image), BlobKey::Blob(upload.sha256));
        if verified.is_stored {
            return Ok(());
        }
        match self.move_object(&staged.path(), &blob.path()).await {
            // Another attempt has moved them.
            Err(BlobError::NotFound) => {
                let found = self.digest(&blob, 0).await?;
                let is_good = (found.sha256, found.bytes) == (upload.sha256, upload.bytes);
                if is_good { Ok(()) } else { Err(BlobError::Damaged) }
            }
            other => other,
        }
    }
}

/// A digest that grows.
struct Digesting {
    hasher: ContentHasher,
    bytes: u64,
    head: BytesMut,
    head_bytes: usize,
}

impl Digesting {
    fn new(head_bytes: usize) -> Self {
        Self { hasher: ContentHasher::default(), bytes: 0, head: BytesMut::new(), head_bytes }
    }

    fn update(&mut self, chunk: &[u8]) {
        self.hasher.update(chunk);
        self.bytes += chunk.len() as u64;
        let missing = self.head_bytes - self.head.len();
        self.head.extend_from_slice(&chunk[..missing.min(chunk.len())]);
    }

    fn finish(self) -> Digest {
        Digest { sha256: self.hasher.finish(), bytes: self.bytes, head: self.head.freeze() }
    }
}

fn digest_file(mut file: File, head: usize) -> io::Result<Digest> {
    let mut digesting = Digesting::new(head);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(digesting.finish()),
            Ok(count) => digesting.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
