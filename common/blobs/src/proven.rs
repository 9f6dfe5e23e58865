//! Reads that hash a file only once: a process receives an upload, and its jobs read the same bytes twice.

use std::{
    fs::File,
    io::{self, Read},
};

use bytes::Bytes;
use object_store::GetResultPayload;
use safelight_domain::ContentHash;

use super::{BlobError, BlobKey, Blobs, Stamp};
use crate::{blocking::blocking, proven_files::ProvenFiles, time_limits::whole};

impl Blobs {
    /// The first `count` bytes of a blob of `bytes` bytes, if it is a file that this process has hashed a moment ago.
    pub(super) async fn head_of_proven(
        &self,
        sha256: ContentHash,
        bytes: u64,
        count: usize,
    ) -> Option<Bytes> {
        if !self.is_local() {
            return None;
        }
        let found = self.get(&BlobKey::Blob(sha256), None).await.ok()?;
        let GetResultPayload::File(file, _) = found.payload else { return None };
        let proven = self.proven.clone();
        blocking(move || read_head(&file, (sha256, bytes), count, &proven)).await.ok()?
    }

    /// Reads a whole object of at most `limit` bytes that must have this hash. A file that this process has hashed a
    /// moment ago is not hashed again. Fails with [`BlobError::Damaged`] if it has other bytes.
    pub async fn read_verified(
        &self,
        key: &BlobKey,
        sha256: ContentHash,
        limit: u64,
    ) -> Result<Bytes, BlobError> {
        let found = self.get(key, None).await?;
        if found.meta.size > limit {
            return Err(BlobError::TooLarge { bytes: found.meta.size, limit });
        }
        if let GetResultPayload::File(file, _) = found.payload {
            let proven = self.proven.clone();
            let read = blocking(move || read_file(&file, limit, sha256, &proven)).await?;
            return read.ok_or(BlobError::Damaged);
        }
        let bytes = whole(found).await?;
        // Where it delays nobody: it takes a millisecond per megabyte.
        let of = bytes.clone();
        let hash = blocking(move || Ok(ContentHash::of(&of))).await?;
        if hash == sha256 { Ok(bytes) } else { Err(BlobError::Damaged) }
    }
}

/// The first `count` bytes of a file of `bytes` bytes, if it is proven.
fn read_head(
    file: &File,
    (sha256, bytes): (ContentHash, u64),
    count: usize,
    proven: &ProvenFiles,
) -> io::Result<Option<Bytes>> {
    let meta = file.metadata()?;
    if meta.len() != bytes || !proven.knows(&sha256, Stamp::of(&meta)) {
        return Ok(None);
    }
    let mut head = Vec::with_capacity(count.min(usize::try_from(bytes).unwrap_or(count)));
    file.take(count as u64).read_to_end(&mut head)?;
    let is_same = Stamp::of(&file.metadata()?) == Stamp::of(&meta);
    Ok(is_same.then(|| head.into()))
}

/// The bytes of a file; `None` if they have another hash.
fn read_file(
    file: &File,
    limit: u64,
    sha256: ContentHash,
    proven: &ProvenFiles,
) -> io::Result<Option<Bytes>> {
    let meta = file.metadata()?;
    let size = usize::try_from(meta.len().min(limit)).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(size);
    file.take(limit).read_to_end(&mut bytes)?;
    let state = Stamp::of(&file.metadata()?);
    // Nobody wrote to it meanwhile.
    let is_same = state == Stamp::of(&meta);
    if !(is_same && proven.knows(&sha256, state)) {
        if ContentHash::of(&bytes) != sha256 {
            return Ok(None);
        }
        if is_same {
            proven.insert(sha256, state);
        }
    }
    Ok(Some(bytes.into()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use safelight_domain::ImageId;
    use tempfile::TempDir;

    use super::*;
    use crate::{
        StagedUpload,
        testing::{open, store},
    };

    async fn stored() -> (TempDir, Blobs, ContentHash) {
        let folder = TempDir::new().expect("folder");
        let blobs = open(&folder);
        drop(store(&blobs, b"picture").await);
        (folder, blobs, ContentHash::of(b"picture"))
    }

    #[tokio::test]
    async fn stored_file_is_proven_until_it_changes() {
        let (folder, blobs, sha256) = stored().await;
        let key = BlobKey::Blob(sha256);
        let path = folder.path().join(key.path().as_ref());
        let state = || Stamp::of(&fs::metadata(&path).expect("a file"));
        assert!(blobs.proven.knows(&sha256, state()));
        assert_eq!(blobs.read_verified(&key, sha256, 99).await.expect("read"), "picture");
        // As large, and in the same file.
        fs::write(&path, b"Picture").expect("damaged");
        assert!(!blobs.proven.knows(&sha256, state()));
        let read = blobs.read_verified(&key, sha256, 99).await;
        assert!(matches!(read, Err(BlobError::Damaged)), "{read:?}");
        fs::write(&path, b"picture").expect("repaired");
        assert_eq!(blobs.read_verified(&key, sha256, 99).await.expect("read"), "picture");
        assert!(blobs.proven.knows(&sha256, state()), "it was hashed");
        let limited = blobs.read_verified(&key, sha256, 6).await;
        assert!(matches!(limited, Err(BlobError::TooLarge { bytes: 7, limit: 6 })), "{limited:?}");
    }

    #[tokio::test]
    async fn proof_of_an_upload_reads_every_byte_of_a_changed_file() {
        let (folder, blobs, sha256) = stored().await;
        let path = folder.path().join(BlobKey::Blob(sha256).path().as_ref());
        let upload = StagedUpload { image: ImageId::new(), sha256, bytes: 7 };
        assert_eq!(blobs.verify_upload(&upload, 4).await.expect("proven").head, "pict");
        assert_eq!(blobs.head_of_proven(sha256, 8, 4).await, None, "another size");
        fs::write(&path, b"picturE").expect("damaged");
        assert_eq!(blobs.head_of_proven(sha256, 7, 4).await, None);
        let proof = blobs.verify_upload(&upload, 4).await;
        assert!(matches!(proof, Err(BlobError::Damaged)), "{proof:?}");
    }
}
