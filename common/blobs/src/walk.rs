//! Walks over all blobs and renditions, in pages.
//!
//! A local directory lists its files without order, and an object store orders only within a prefix. So the walk
//! visits the shards (the folders `blobs/00` to `renditions/ff`) one by one, and takes the first paths after its
//! cursor. At most one page is in memory.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectMeta, path::Path};
use safelight_domain::ContentHash;

use super::{BlobError, BlobKey, Blobs};

/// The folder of the quarantine.
pub(super) const QUARANTINE: &str = "quarantine";

/// Maximum number of shards per call, which limits the requests if shards are empty.
const SHARDS_AT_ONCE: usize = 64;

/// An object in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its path, which is also the cursor to continue after it.
    pub path: String,
    /// Its key; `None` for a foreign object.
    pub key: Option<BlobKey>,
    /// Its size.
    pub bytes: u64,
    /// When it was last written, by [`Blobs::clock`].
    pub modified: DateTime<Utc>,
}

/// A page of a walk.
#[derive(Debug)]
pub struct Walked {
    /// The objects, ordered by path.
    pub objects: Vec<Stored>,
    /// The cursor of the next page; `None` after the last.
    pub next: Option<String>,
}

impl Blobs {
    /// Returns at most `limit` blobs and renditions after a cursor. A page can be empty without being the last.
    pub async fn walk(&self, after: Option<&str>, limit: usize) -> Result<Walked, BlobError> {
        let (objects, next) = self.walk_shards(Shard::FIRST, after, limit).await?;
        Ok(Walked { objects: objects.iter().map(stored).collect(), next })
    }

    /// At most `limit` objects after a cursor, ordered by path, and the cursor of the next page. Without a cursor
    /// the walk begins at `first`.
    pub(super) async fn walk_shards(
        &self,
        first: Shard,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<ObjectMeta>, Option<String>), BlobError> {
        let mut objects: Vec<ObjectMeta> = Vec::new();
        let mut shard = after.map_or(first, Shard::of);
        let mut after = after.map_or_else(|| shard.folder(), Path::from);
        for _ in 0..SHARDS_AT_ONCE {
            let room = limit - objects.len();
            let found = self.first_of(&shard.folder(), &after, room).await?;
            let is_full = found.len() == room;
            objects.extend(found);
            if is_full {
                let next = objects.last().map(|last| last.location.to_string());
                return Ok((objects, next));
            }
            let Some(next) = shard.next() else { return Ok((objects, None)) };
            (shard, after) = (next, next.folder());
        }
        Ok((objects, Some(shard.folder().to_string())))
    }

    /// All stored renditions of a blob, whether or not they are recorded.
    pub async fn renditions_of(&self, blob: &ContentHash) -> Result<Vec<BlobKey>, BlobError> {
        let hash = blob.to_string();
        let folder = Path::from_iter([BlobKey::RENDITIONS, &hash[..2], &hash]);
        let objects = self.store.list(Some(&folder));
        let keys = objects
            .try_filter_map(|object| std::future::ready(Ok(BlobKey::parse(&object.location))));
        Ok(keys.try_collect().await?)
    }

    /// The first `limit` objects in a folder after a path.
    async fn first_of(
        &self,
        folder: &Path,
        after: &Path,
        limit: usize,
    ) -> Result<Vec<ObjectMeta>, BlobError> {
        let listed = self.store.list_with_offset(Some(folder), after);
        if !self.is_local() {
            return Ok(listed.take(limit).try_collect().await?);
        }
        let keep = async |mut first: BTreeMap<Path, ObjectMeta>, object: ObjectMeta| {
            first.insert(object.location.clone(), object);
            if first.len() > limit {
                first.pop_last();
            }
            Ok(first)
        };
        let first = listed.try_fold(BTreeMap::new(), keep).await?;
        Ok(first.into_values().collect())
    }
}

pub(super) fn stored(object: &ObjectMeta) -> Stored {
    Stored {
        key: BlobKey::parse(&object.location),
        path: object.location.to_string(),
        bytes: object.size,
        modified: object.last_modified,
    }
}

/// A folder for all objects with the same first byte of their blob's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    top: &'static str,
    byte: u8,
}

impl Shard {
    /// The first of the blobs; those of the renditions follow.
    pub const FIRST: Self = Self { top: BlobKey::BLOBS, byte: 0 };

    /// The first of the quarantine.
    pub(super) const FIRST_QUARANTINED: Self = Self { top: QUARANTINE, byte: 0 };

    /// The shard of a cursor; the first for an invalid cursor.
    fn of(cursor: &str) -> Self {
        let mut parts = cursor.split('/');
        let top = match parts.next() {
            Some(BlobKey::RENDITIONS) => BlobKey::RENDITIONS,
            Some(QUARANTINE) => QUARANTINE,
            _ => BlobKey::BLOBS,
        };
        let byte = parts.next().and_then(|hex| u8::from_str_radix(hex, 16).ok());
        Self { top, byte: byte.unwrap_or(0) }
    }

    pub(super) fn folder(self) -> Path {
        Path::from_iter([self.top, &format!("{:02x}", self.byte)])
    }

    /// The shard after this one; `None` after the last.
    pub fn next(self) -> Option<Self> {
        match self.byte.checked_add(1) {
            Some(byte) => Some(Self { byte, ..self }),
            None if self.top == BlobKey::BLOBS => Some(Self { top: BlobKey::RENDITIONS, byte: 0 }),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_walked_in_order_to_the_end() {
        let mut shard = Shard::FIRST;
        let mut folders = vec![shard.folder().to_string()];
        while let Some(next) = shard.next() {
            assert_eq!(Shard::of(next.folder().as_ref()), next);
            assert_eq!(Shard::of(&format!("{}/ab", next.folder())), next);
            folders.push(next.folder().to_string());
            shard = next;
        }
        assert!(folders.is_sorted());
        assert_eq!(
            (folders.len(), &*folders[0], &*folders[511]),
            (512, "blobs/00", "renditions/ff")
        );
        let quarantine =
            std::iter::successors(Some(Shard::FIRST_QUARANTINED), |shard| shard.next());
        assert_eq!(quarantine.count(), 256);
        assert_eq!(Shard::of("quarantine/ab/x").folder().as_ref(), "quarantine/ab");
    }
}
