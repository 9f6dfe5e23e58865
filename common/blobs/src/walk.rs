//! Walks over all blobs and renditions, in pages.
//!
//! A local directory lists its files without order, and an object store orders only within a prefix. So the walk
//! visits the shards (the folders `blobs/00` to `renditions/ff`) one by one, and takes the first paths after its
//! cursor. At most one page is in memory.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectMeta, path::Path};

use super::{BlobError, BlobKey, Blobs};

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
        let mut objects: Vec<Stored> = Vec::new();
        let mut shard = after.map_or(Shard(0), Shard::of);
        let mut after = after.map_or_else(|| shard.folder(), Path::from);
        for _ in 0..SHARDS_AT_ONCE {
            let room = limit - objects.len();
            let found = self.first_of(&shard.folder(), &after, room).await?;
            let is_full = found.len() == room;
            objects.extend(found);
            if is_full {
                let next = objects.last().map(|last| last.path.clone());
                return Ok(Walked { objects, next });
            }
            let Some(next) = shard.next() else { return Ok(Walked { objects, next: None }) };
            (shard, after) = (next, next.folder());
        }
        Ok(Walked { objects, next: Some(shard.folder().to_string()) })
    }

    /// The first `limit` objects in a folder after a path.
    async fn first_of(
        &self,
        folder: &Path,
        after: &Path,
        limit: usize,
    ) -> Result<Vec<Stored>, BlobError> {
        let listed = self.store.list_with_offset(Some(folder), after);
        if !self.is_local() {
            return Ok(listed.take(limit).map_ok(|object| stored(&object)).try_collect().await?);
        }
        let keep = async |mut first: BTreeMap<Path, Stored>, object: ObjectMeta| {
            first.insert(object.location.clone(), stored(&object));
            if first.len() > limit {
                first.pop_last();
            }
            Ok(first)
        };
        let first = listed.try_fold(BTreeMap::new(), keep).await?;
        Ok(first.into_values().collect())
    }
}

fn stored(object: &ObjectMeta) -> Stored {
    Stored {
        key: BlobKey::parse(&object.location),
        path: object.location.to_string(),
        bytes: object.size,
        modified: object.last_modified,
    }
}

/// A folder for all objects with the same first byte of their blob's hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shard(u16);

impl Shard {
    /// The number of shards for blobs, and the number for renditions.
    const EACH: u16 = 256;

    /// The shard of a cursor; the first for an invalid cursor.
    fn of(cursor: &str) -> Self {
        let mut parts = cursor.split('/');
        let half = if parts.next() == Some(BlobKey::RENDITIONS) { Self::EACH } else { 0 };
        let byte = parts.next().and_then(|hex| u8::from_str_radix(hex, 16).ok());
        Self(half + byte.map_or(0, u16::from))
    }

    fn folder(self) -> Path {
        let half = if self.0 < Self::EACH { BlobKey::BLOBS } else { BlobKey::RENDITIONS };
        Path::from_iter([half, &format!("{:02x}", self.0 % Self::EACH)])
    }

    fn next(self) -> Option<Self> {
        (self.0 + 1 < 2 * Self::EACH).then_some(Self(self.0 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_walked_in_order_to_the_end() {
        let mut shard = Shard(0);
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
    }
}
