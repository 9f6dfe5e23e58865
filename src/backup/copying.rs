//! Copies one object at a time: hashed on the way, and never put under a name that is not its hash.

use std::path::Path;

use futures::TryStreamExt;
use safelight_blobs::{BlobError, Blobs};
use safelight_domain::ContentHash;
use serde::{Deserialize, Serialize};
use tokio::{fs::File, io::AsyncReadExt};

/// Objects that are copied at the same time. Each takes up to 5 MiB of memory.
pub const AT_ONCE: usize = 8;

/// Bytes that are read from a local file at once.
const CHUNK: usize = 1 << 18;

/// What became of an object that was to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// It was copied.
    Whole(u64),
    /// It does not exist any more.
    Gone,
    /// Its bytes are not those of its name. Nothing was written.
    Damaged,
}

/// Why an object was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// It cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// Its path.
        path: String,
        /// Why not.
        error: BlobError,
    },
    /// It cannot be written, so that nothing can.
    #[error("cannot write {path}: {error}")]
    Write {
        /// Its path.
        path: String,
        /// Why not.
        error: BlobError,
    },
}

/// Copies an object. If its hash is `expected`, but is another, writes nothing.
pub async fn copy(
    (from, source): (&Blobs, &str),
    (to, target): (&Blobs, &str),
    expected: Option<ContentHash>,
) -> Result<Copied, CopyError> {
    let unreadable = |error| CopyError::Read { path: source.to_owned(), error };
    let unwritable = |error| CopyError::Write { path: target.to_owned(), error };
    let (bytes, mut content) = match from.open_path(source).await {
        Ok(opened) => opened,
        Err(BlobError::NotFound) => return Ok(Copied::Gone),
        Err(error) => return Err(unreadable(error)),
    };
    let mut writer = to.write_path(target);
    while let Some(chunk) = content.try_next().await.map_err(unreadable)? {
        writer.write(&chunk).await.map_err(unwritable)?;
    }
    if expected.is_some_and(|expected| writer.hash() != expected) || writer.bytes() != bytes {
        return Ok(Copied::Damaged);
    }
    writer.finish().await.map_err(unwritable)?;
    Ok(Copied::Whole(bytes))
}

/// A file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFile {
    /// Its path in the backup.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its hash.
    pub sha256: ContentHash,
}

/// Copies a local file into a backup.
pub async fn put_file(file: &Path, to: &Blobs, target: String) -> Result<SnapshotFile, CopyError> {
    let unreadable = |error: std::io::Error| CopyError::Read {
        path: file.display().to_string(),
        error: error.into(),
    };
    let unwritable = |error| CopyError::Write { path: target.clone(), error };
    let mut source = File::open(file).await.map_err(unreadable)?;
    let mut writer = to.write_path(&target);
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = source.read(&mut chunk).await.map_err(unreadable)?;
        if read == 0 {
            break;
        }
        writer.write(&chunk[..read]).await.map_err(unwritable)?;
    }
    let (bytes, sha256) = (writer.bytes(), writer.hash());
    writer.finish().await.map_err(unwritable)?;
    Ok(SnapshotFile { path: target, bytes, sha256 })
}

#[cfg(test)]
mod tests {
    use safelight_blobs::{BlobKey, BlobLocation};

    use super::*;

    #[tokio::test]
    async fn damaged_object_does_not_replace_a_good_copy() {
        let folder = tempfile::tempdir().expect("folder");
        let open = |name: &str| {
            let location = BlobLocation::Folder(folder.path().join(name));
            Blobs::open(&location, folder.path()).expect("opened")
        };
        let (from, to) = (open("from"), open("to"));
        // Large enough for several parts, so that some are written before the end is known.
        let good: Vec<u8> = (0..12_000_000_u32).map(|n| n.to_be_bytes()[3]).collect();
        let hash = ContentHash::of(&good);
        let key = BlobKey::Blob(hash);
        let text = hash.to_string();
        let path = format!("blobs/{}/{text}", &text[..2]);
        from.put(&key, good.clone().into()).await.expect("stored");
        let copied = copy((&from, &path), (&to, &path), Some(hash)).await.expect("copied");
        assert_eq!(copied, Copied::Whole(12_000_000));

        let mut bad = good;
        bad[11_000_000] ^= 1;
        from.put(&key, bad.into()).await.expect("stored");
        let copied = copy((&from, &path), (&to, &path), Some(hash)).await.expect("copied");
        assert_eq!(copied, Copied::Damaged);
        assert_eq!(to.hash(&key).await.expect("read"), (hash, 12_000_000));

        from.delete(&key).await.expect("deleted");
        let copied = copy((&from, &path), (&to, &path), Some(hash)).await.expect("copied");
        assert_eq!(copied, Copied::Gone);
    }
}
