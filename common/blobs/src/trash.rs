//! Deletes shared blobs without losing one that is still needed.
//!
//! A blob belongs to all images with the same content, and a new one can be uploaded at any moment. So a blob is
//! first moved to the trash, and only then checked for references. The check sees every image that was stored
//! before the move, and restores the blob for it; an image that is stored afterwards stores the blob again. At
//! last, the trash is deleted. Every step can be interrupted and repeated, by several processes at once: each
//! move uses a unique name, and a process decides only about what it has moved itself, or what was left by a move
//! that is certainly over.

use std::collections::BTreeMap;

use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStoreExt, path::Path};
use safelight_domain::ContentHash;
use uuid::Uuid;

use super::{BlobError, BlobKey, Blobs};

/// The folder of the trash.
pub(super) const TRASH: &str = "trash";

/// Replaces the `/` of an object's path, because the trash is a flat folder that leaves no empty folders.
const SEPARATOR: &str = "=";

/// Objects in the trash about which its holder decides.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Trashed(Vec<Path>);

/// What other processes have left in the trash of a blob.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TrashOfOthers {
    /// What dead processes have left.
    pub abandoned: Trashed,
    /// Whether there is more, about which its mover may still decide.
    pub is_moving: bool,
}

impl Trashed {
    /// These objects and `others`.
    #[must_use]
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }
}

impl Blobs {
    /// Moves blobs and renditions to the trash. Missing ones are left out. If one cannot be moved, those before it
    /// return.
    pub async fn trash(&self, keys: &[BlobKey]) -> Result<Trashed, BlobError> {
        let mut moved = Trashed::default();
        for key in keys {
            let (from, to) = (key.path(), trash_path(&key.path()));
            match self.rename(&from, &to).await {
                Ok(true) => moved.0.push(to),
                Ok(false) => {}
                Err(error) => {
                    let _ = self.restore(moved).await;
                    return Err(error);
                }
            }
        }
        Ok(moved)
    }

    /// Restores objects from the trash, unless they have been stored again. Goes on after an error, and returns the
    /// first.
    pub async fn restore(&self, trashed: Trashed) -> Result<(), BlobError> {
        let mut result = Ok(());
        // The blob was moved last, and is missed most.
        for path in trashed.0.into_iter().rev() {
            let Some((_, original)) = origin(&path) else { continue };
            let restored = match self.believe(self.store.head(&original).await).await {
                Ok(_) => self.delete_path(&path).await,
                Err(BlobError::NotFound) => self.rename(&path, &original).await.map(drop),
                Err(error) => Err(error),
            };
            result = result.and(restored);
        }
        result
    }

    /// Deletes objects from the trash.
    pub async fn delete_trashed(&self, trashed: Trashed) -> Result<(), BlobError> {
        for path in trashed.0 {
            self.delete_path(&path).await?;
        }
        Ok(())
    }

    /// What other processes have left in the trash, by blob. `own` objects are not among it.
    pub async fn trash_of_others(
        &self,
        own: &Trashed,
    ) -> Result<BTreeMap<ContentHash, TrashOfOthers>, BlobError> {
        let mut others: BTreeMap<ContentHash, TrashOfOthers> = BTreeMap::new();
        let mut trash = self.list_trash().await?;
        trash.retain(|object| !own.0.contains(&object.location));
        if trash.is_empty() {
            return Ok(others);
        }
        let ended = self.ended_moves().await?;
        for ObjectMeta { location, last_modified, .. } in trash {
            let Some((blob, _)) = origin(&location) else { continue };
            let others = others.entry(blob).or_default();
            if ended.include(last_modified) {
                others.abandoned.0.push(location);
            } else {
                others.is_moving = true;
            }
        }
        Ok(others)
    }

    /// Everything in the trash, which is nearly always empty.
    async fn list_trash(&self) -> Result<Vec<ObjectMeta>, BlobError> {
        Ok(self.store.list(Some(&Path::from(TRASH))).try_collect().await?)
    }
}

/// A unique name in the trash: `blob=<token>=<path>`.
fn trash_path(path: &Path) -> Path {
    let (token, flat) = (Uuid::new_v4().simple(), path.as_ref().replace('/', SEPARATOR));
    Path::from_iter([TRASH, &format!("blob{SEPARATOR}{token}{SEPARATOR}{flat}")])
}

/// The blob of an object in the trash, and its original path. Ignores what precedes the token, because earlier
/// releases wrote an image's id there.
fn origin(path: &Path) -> Option<(ContentHash, Path)> {
    let flat = path.filename()?.splitn(3, SEPARATOR).nth(2)?;
    let original = Path::parse(flat.replace(SEPARATOR, "/")).ok()?;
    let blob = original.parts().nth(2)?.as_ref().parse().ok()?;
    Some((blob, original))
}

#[cfg(test)]
mod tests {
    use safelight_domain::ImageFormat;

    use super::*;

    #[test]
    fn trashed_objects_know_their_origin() {
        let blob = ContentHash::of(b"x");
        let rendition = BlobKey::Rendition {
            of: blob,
            preset: "small".to_owned(),
            fingerprint: "0123456789ab".to_owned(),
            format: ImageFormat::Webp,
        };
        for key in [BlobKey::Blob(blob), rendition] {
            let path = trash_path(&key.path());
            assert_eq!(path.parts().count(), 2, "{path} is flat");
            assert_eq!(origin(&path), Some((blob, key.path())));
            assert_ne!(path, trash_path(&key.path()), "each move has its own name");
        }
    }

    #[test]
    fn trash_of_an_earlier_release_is_parsed() {
        let key = BlobKey::Blob(ContentHash::of(b"x"));
        let flat = key.path().as_ref().replace('/', "=");
        let image = "0193c2a4-7d1e-7c3a-9d52-3f1f5a3c9b10";
        let path = Path::from(format!("trash/{image}=67e5504410b1426f9247bb680e5fe0c8={flat}"));
        assert_eq!(origin(&path), Some((ContentHash::of(b"x"), key.path())));
        assert_eq!(origin(&Path::from("trash/other")), None);
    }
}
