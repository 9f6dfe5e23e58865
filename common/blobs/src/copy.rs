//! Whole objects by path, for copies of a store: backups have files beside blobs and renditions.

use bytes::{Bytes, BytesMut};
use futures::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use object_store::{GetOptions, ObjectStoreExt, PutPayload, path::Path};
use safelight_domain::{ContentHash, ContentHasher};
use tokio::time::timeout;

use super::{
    BlobError, BlobStream, Blobs, Stored, WrongStore,
    partial::Partial,
    time_limits::{FIRST_BYTE, with_stall_timeout},
    walk::stored,
};

/// Bytes per part. S3 requires at least 5 MiB for all but the last.
const PART_BYTES: usize = 5 * 1024 * 1024;

/// After so many parts, the next ones are twice as large: S3 allows 10,000 parts.
const PARTS_PER_SIZE: usize = 1000;

/// An object being written, which appears under its path when it is finished. Dropping it unfinished leaves nothing
/// behind.
pub struct ObjectWriter {
    blobs: Blobs,
    path: Path,
    hasher: ContentHasher,
    bytes: u64,
    buffer: BytesMut,
    parts: usize,
    upload: Option<Partial>,
}

impl Blobs {
    /// Streams the object at `path`, and returns its size.
    pub async fn open_path(&self, path: &str) -> Result<(u64, BlobStream), BlobError> {
        let path = Path::from(path);
        let answer = timeout(FIRST_BYTE, self.reads.get_opts(&path, GetOptions::default())).await;
        let result = self.believe(answer.map_err(|_| BlobError::Late)?).await?;
        Ok((result.meta.size, with_stall_timeout(result.into_stream())))
    }

    /// Starts to write the object at `path`, and to replace an existing one.
    pub fn write_path(&self, path: &str) -> ObjectWriter {
        ObjectWriter {
            blobs: self.clone(),
            path: Path::from(path),
            hasher: ContentHasher::default(),
            bytes: 0,
            buffer: BytesMut::new(),
            parts: 0,
            upload: None,
        }
    }

    /// Deletes the object at `path`. Succeeds if it does not exist.
    pub async fn delete_at(&self, path: &str) -> Result<(), BlobError> {
        self.delete_path(&Path::from(path)).await
    }

    /// The objects of some of the folders `blobs` and `renditions`, each in the order of its
    /// paths. A local directory is listed shard by shard, of which each is in memory; object stores list in order.
    pub fn sorted(
        &self,
        folders: &[&'static str],
    ) -> BoxStream<'static, Result<Stored, BlobError>> {
        let (blobs, folders) = (self.clone(), folders.to_vec());
        if self.is_local() {
            let shards = folders.into_iter().flat_map(|folder| {
                (0..=u8::MAX).map(move |shard| Path::from_iter([folder, &format!("{shard:02x}")]))
            });
            let listed = stream::iter(shards).then(move |shard| {
                let listed = blobs.store.list(Some(&shard));
                async move {
                    let mut objects: Vec<Stored> =
                        listed.map_ok(|object| stored(&object)).try_collect().await?;
                    objects.sort_unstable_by(|one, other| one.path.cmp(&other.path));
                    Ok::<_, BlobError>(stream::iter(objects.into_iter().map(Ok)))
                }
            });
            return listed.try_flatten().boxed();
        }
        let listed = stream::iter(folders)
            .flat_map(move |folder| blobs.store.list(Some(&Path::from(folder))))
            .map_err(BlobError::from);
        let mut last = String::new();
        let in_order = listed.and_then(move |object| {
            let object = stored(&object);
            let ordered = last < object.path;
            last.clone_from(&object.path);
            std::future::ready(if ordered { Ok(object) } else { Err(out_of_order()) })
        });
        in_order.boxed()
    }

    /// The paths and sizes of all objects in a folder, in no order.
    pub fn list_folder(
        &self,
        folder: &str,
    ) -> impl Stream<Item = Result<(String, u64), BlobError>> + '_ {
        let listed = self.store.list(Some(&Path::from(folder)));
        listed.map_ok(|object| (object.location.to_string(), object.size)).map_err(BlobError::from)
    }
}

fn out_of_order() -> BlobError {
    let source = "the store does not list its keys in order".into();
    BlobError::Store(object_store::Error::Generic { store: "S3", source })
}

impl ObjectWriter {
    /// Adds the next bytes.
    pub async fn write(&mut self, chunk: &[u8]) -> Result<(), BlobError> {
        self.hasher.update(chunk);
        self.bytes += chunk.len() as u64;
        self.buffer.extend_from_slice(chunk);
        if self.buffer.len() >= PART_BYTES << (self.parts / PARTS_PER_SIZE) {
            let part = self.buffer.split().freeze();
            self.send(part).await?;
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

    /// Makes the object durable under its path, as a whole and in the store that it is meant for.
    pub async fn finish(mut self) -> Result<(), BlobError> {
        let rest = self.buffer.split().freeze();
        if self.upload.is_none() {
            self.blobs.store.put(&self.path, PutPayload::from(rest)).await?;
        } else if !rest.is_empty() {
            self.send(rest).await?;
        }
        if let Some(upload) = &mut self.upload {
            upload.complete().await?;
        }
        let kept = self.check().await;
        if let Err(BlobError::Damaged | BlobError::WrongStore(WrongStore::Unmarked)) = kept {
            // It was cut off, or written somewhere else, for example below the mount point of a volume that was
            // unmounted.
            let _ = self.blobs.store.delete(&self.path).await;
        }
        kept
    }

    /// Checks that the store has what it acknowledged.
    async fn check(&self) -> Result<(), BlobError> {
        self.blobs.require_size(&self.path, self.bytes).await?;
        self.blobs.confirm().await
    }

    async fn send(&mut self, part: Bytes) -> Result<(), BlobError> {
        let upload = if let Some(upload) = &mut self.upload {
            upload
        } else {
            let begun = self.blobs.store.put_multipart(&self.path).await?;
            self.upload.insert(Partial::of(begun))
        };
        self.parts += 1;
        upload.write(part).await
    }
}

#[cfg(test)]
mod tests {
    use safelight_domain::InstallationId;
    use uuid::Uuid;

    use super::*;
    use crate::testing::open;

    #[tokio::test]
    async fn object_that_the_store_cut_off_is_an_error() {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = open(&folder);
        for bytes in [10, 2 * PART_BYTES + 10] {
            let mut writer = blobs.write_path("database/x");
            writer.write(&vec![1; bytes]).await.expect("written");
            // As if the store had dropped the last byte.
            writer.bytes += 1;
            assert!(matches!(writer.finish().await, Err(BlobError::Damaged)), "{bytes} bytes");
            assert!(!folder.path().join("database/x").exists(), "a part of the object stays");
        }
    }

    #[tokio::test]
    async fn object_written_below_a_mount_point_is_an_error() {
        let folder = tempfile::tempdir().expect("folder");
        let id = InstallationId(Uuid::nil());
        let blobs = open(&folder);
        blobs.mark(id).await.expect("marked");
        let blobs = blobs.of_installation(id);
        let write = async || {
            let mut writer = blobs.write_path("blobs/00/x");
            writer.write(b"x").await.expect("written");
            writer.finish().await
        };
        write().await.expect("written to the own store");
        // What is seen when its volume is unmounted.
        std::fs::remove_dir_all(folder.path()).expect("removed");
        std::fs::create_dir(folder.path()).expect("made");
        let unmounted = write().await;
        assert!(
            matches!(unmounted, Err(BlobError::WrongStore(WrongStore::Unmarked))),
            "{unmounted:?}"
        );
        assert!(
            !folder.path().join("blobs/00/x").exists(),
            "the object stays below the mount point"
        );
    }
}
