//! The quarantine: unreferenced objects wait here before they are deleted, so that a collection of garbage that
//! was wrong can be undone.
//!
//! Every move uses a unique name, which also tells when it was made, by the store's clock: a move does not change
//! when an object was last written. The objects of a blob share a folder, so that those of one blob are found
//! with one short listing.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::{Stream, TryStreamExt};
use object_store::{ObjectMeta, path::Path};
use safelight_domain::{ContentHash, TaskId};
use uuid::Uuid;

use super::{BlobError, BlobKey, Blobs, Stored};
use crate::{
    blocking::blocking,
    walk::{QUARANTINE, Shard},
};

/// Replaces the `/` of an object's path, because a collection should leave no deep folders.
const SEPARATOR: &str = "=";

/// An object in the quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    path: Path,
    /// What it is.
    pub key: BlobKey,
    /// The blob itself, or the blob that the rendition was made from.
    pub blob: ContentHash,
    /// The collection that moved it here.
    pub run: TaskId,
    /// When it was moved here, by [`Blobs::clock`].
    pub moved_at: DateTime<Utc>,
    /// When it was last written, by [`Blobs::clock`]. In a store without renames that is the end of the copy.
    pub written_at: DateTime<Utc>,
    /// Its size.
    pub bytes: u64,
}

/// A page of a walk over the quarantine.
#[derive(Debug)]
pub struct WalkedQuarantine {
    /// The objects, ordered by path.
    pub objects: Vec<Quarantined>,
    /// The cursor of the next page; `None` after the last.
    pub next: Option<String>,
}

/// The result of [`Blobs::take_back`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenBack {
    /// The object is in its place again.
    Yes,
    /// It was stored again meanwhile, and stays in the quarantine.
    StoredAgain,
    /// It is not in the quarantine any more.
    Gone,
}

/// What becomes of an object's place in the quarantine when it returns, in a store without renames.
enum Place {
    Left,
    Kept,
}

impl Quarantined {
    /// Its path in the quarantine.
    pub fn path(&self) -> &str {
        self.path.as_ref()
    }

    /// Whether it was moved here at least `keep` before `now`. Of times that no calendar has, nothing is that
    /// old.
    pub fn is_due(&self, keep: Duration, now: DateTime<Utc>) -> bool {
        let keep = chrono::TimeDelta::from_std(keep).ok();
        let due = keep.and_then(|keep| self.moved_at.checked_add_signed(keep));
        due.is_some_and(|due| due <= now)
    }

    fn of(object: &ObjectMeta) -> Option<Self> {
        let mut parts = object.location.filename()?.splitn(4, SEPARATOR);
        let (moved_at, run, _token) = (parts.next()?, parts.next()?, parts.next()?);
        let original = Path::parse(parts.next()?.replace(SEPARATOR, "/")).ok()?;
        let key = BlobKey::parse(&original)?;
        Some(Self {
            path: object.location.clone(),
            blob: key.blob()?,
            key,
            run: run.parse().ok()?,
            moved_at: DateTime::from_timestamp_millis(moved_at.parse().ok()?)?,
            written_at: object.last_modified,
            bytes: object.size,
        })
    }
}

impl Blobs {
    /// Moves a blob or a rendition to the quarantine. `now` is the time by [`Blobs::clock`]. Returns `None` if it
    /// does not exist.
    pub async fn quarantine(
        &self,
        object: &Stored,
        run: TaskId,
        now: DateTime<Utc>,
    ) -> Result<Option<Quarantined>, BlobError> {
        let Some((key, blob)) = object.key.clone().and_then(|key| Some((key.clone(), key.blob()?)))
        else {
            return Ok(None);
        };
        let path = place(&key, &blob, run, now);
        let is_moved = self.rename(&key.path(), &path).await?;
        let (bytes, written_at) = (object.bytes, now);
        let moved = Quarantined { path, key, blob, run, moved_at: now, written_at, bytes };
        Ok(is_moved.then_some(moved))
    }

    /// Moves an object back to its place, unless it was stored again.
    pub async fn take_back(&self, object: &Quarantined) -> Result<TakenBack, BlobError> {
        self.put_back(object, Place::Left).await
    }

    /// [`Blobs::take_back`] of an object that its mover may still be working on: a store without renames keeps it in
    /// the quarantine, too.
    pub async fn copy_back(&self, object: &Quarantined) -> Result<TakenBack, BlobError> {
        self.put_back(object, Place::Kept).await
    }

    async fn put_back(&self, object: &Quarantined, place: Place) -> Result<TakenBack, BlobError> {
        if self.exists(&object.key).await? {
            return Ok(TakenBack::StoredAgain);
        }
        // Another process may have done it, or have removed the folder that this move has emptied.
        let (from, to) = (&object.path, object.key.path());
        let is_moved = match place {
            Place::Left => self.rename(from, &to).await?,
            Place::Kept => self.rename_or_copy(from, &to).await?,
        };
        let is_back = is_moved || self.exists(&object.key).await?;
        self.remove_empty_folder(&object.path).await;
        Ok(if is_back { TakenBack::Yes } else { TakenBack::Gone })
    }

    /// Puts a missing object back from the quarantine, by [`Blobs::copy_back`]. Returns whether it is in its place now.
    pub async fn take_back_key(&self, key: &BlobKey) -> Result<bool, BlobError> {
        let Some(blob) = key.blob() else { return Ok(false) };
        for object in self.quarantined_of(&blob).await? {
            if object.key == *key && self.copy_back(&object).await? != TakenBack::Gone {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Deletes an object from the quarantine.
    pub async fn delete_from_quarantine(&self, object: &Quarantined) -> Result<(), BlobError> {
        self.delete_path(&object.path).await?;
        self.remove_empty_folder(&object.path).await;
        Ok(())
    }

    /// Everything in the quarantine, in no order.
    pub fn quarantined(&self) -> impl Stream<Item = Result<Quarantined, BlobError>> + '_ {
        self.store
            .list(Some(&Path::from(QUARANTINE)))
            .map_err(BlobError::from)
            .try_filter_map(async |object| Ok(Quarantined::of(&object)))
    }

    /// Returns at most `limit` objects in the quarantine after a cursor. A page can be empty without being the
    /// last.
    pub async fn walk_quarantine(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<WalkedQuarantine, BlobError> {
        let first = Shard::FIRST_QUARANTINED;
        let (found, next) = self.walk_shards(first, after, limit).await?;
        let objects = found.iter().filter_map(Quarantined::of).collect();
        Ok(WalkedQuarantine { objects, next })
    }

    /// A blob and its renditions, as far as they are in the quarantine.
    pub async fn quarantined_of(&self, blob: &ContentHash) -> Result<Vec<Quarantined>, BlobError> {
        let objects = self.store.list(Some(&folder(blob))).map_err(BlobError::from);
        let of_blob = async |object: ObjectMeta| {
            Ok(Quarantined::of(&object).filter(|found| found.blob == *blob))
        };
        objects.try_filter_map(of_blob).try_collect().await
    }

    /// Removes the folder of an object, if it is the last, from a local directory. Whoever moves an object there
    /// makes the folder again.
    async fn remove_empty_folder(&self, path: &Path) {
        let Some(root) = self.folder() else { return };
        let shard: Vec<_> = path.parts().take(2).collect();
        let shard = shard.iter().fold(root, |folder, part| folder.join(part.as_ref()));
        let remove = move || {
            let is_empty = std::fs::remove_dir(&shard).is_ok();
            if let Some(quarantine) = shard.parent().filter(|_| is_empty) {
                // Fails as long as there is another.
                let _ = std::fs::remove_dir(quarantine);
            }
            Ok(())
        };
        // What remains is an empty folder.
        let _ = blocking(remove).await;
    }
}

/// The folder of a blob's objects.
fn folder(blob: &ContentHash) -> Path {
    Path::from_iter([QUARANTINE, &blob.to_string()[..2]])
}

/// A unique name in the quarantine: `<milliseconds since 1970>=<collection>=<token>=<path>`.
fn place(key: &BlobKey, blob: &ContentHash, run: TaskId, now: DateTime<Utc>) -> Path {
    let (token, ..) = Uuid::new_v4().as_fields();
    let (run, flat) = (run.0.simple(), key.path().as_ref().replace('/', SEPARATOR));
    let (millis, s) = (now.timestamp_millis(), SEPARATOR);
    folder(blob).join(format!("{millis}{s}{run}{s}{token:08x}{s}{flat}"))
}

#[cfg(test)]
mod tests {
    use safelight_domain::ImageFormat;

    use super::*;

    #[test]
    fn quarantined_objects_know_their_origin_and_their_time() {
        let (blob, run) = (ContentHash::of(b"x"), TaskId::new());
        let rendition = BlobKey::Rendition {
            of: blob,
            preset: "p".repeat(32),
            fingerprint: "0123456789ab".to_owned(),
            format: ImageFormat::Webp,
        };
        let now = DateTime::from_timestamp_millis(1_700_000_000_123).expect("a time");
        for key in [BlobKey::Blob(blob), rendition] {
            let path = place(&key, &blob, run, now);
            assert_ne!(path, place(&key, &blob, run, now), "each move has its own name");
            assert!(path.filename().is_some_and(|name| name.len() < 255), "{path}");
            let meta = ObjectMeta {
                location: path.clone(),
                last_modified: Utc::now(),
                size: 7,
                e_tag: None,
                version: None,
            };
            let (moved_at, written_at) = (now, meta.last_modified);
            let found = Quarantined { path, key, blob, run, moved_at, written_at, bytes: 7 };
            assert_eq!(Quarantined::of(&meta), Some(found.clone()));
            let other = ObjectMeta { location: Path::from("quarantine/ab/notes.txt"), ..meta };
            assert_eq!(Quarantined::of(&other), None);
            let hour = Duration::from_hours(1);
            assert!(!found.is_due(hour, now + hour - Duration::from_millis(1)));
            assert!(found.is_due(hour, now + hour) && found.is_due(Duration::ZERO, now));
            assert!(!found.is_due(Duration::MAX, now + hour));
        }
    }
}
