//! Removing what may be shared, without ever losing it.
//!
//! A blob belongs to all images of the same content, and a new one may come at any moment. So it is
//! first moved to the trash, and only then the store is asked whether an image needs it: an image that
//! stored the same content before the move is found then, and the blob is restored; one that stores it
//! afterwards stores it again. Deleting from the trash comes last. The steps may stop anywhere and be
//! taken again, by several processes at once: each move makes a name of its own, and a decision is carried
//! out on the names that were there before it was made, never on what another has moved since.

use futures::TryStreamExt;
use object_store::{ObjectStoreExt, path::Path};
use safelight_domain::ContentHash;
use uuid::Uuid;

use super::{BlobError, BlobKey, Blobs};

/// The folder of the trash.
const TRASH: &str = "trash";

/// Stands for the `/` of an object's path: trash is a flat folder, which leaves no folders behind.
const SEPARATOR: &str = "=";

/// Objects that were in the trash at some moment.
pub struct Trashed(Vec<Path>);

impl Blobs {
    /// Moves blobs and renditions to the trash. Missing ones are left out.
    pub async fn trash(&self, keys: &[BlobKey]) -> Result<Trashed, BlobError> {
        let mut moved = Vec::new();
        for key in keys {
            let (from, to) = (key.path(), trash_path(&key.path()));
            if self.rename(&from, &to).await? {
                moved.push(to);
            }
        }
        Ok(Trashed(moved))
    }

    /// What is now in the trash of a blob, whichever process moved it.
    pub async fn trashed(&self, blob: &ContentHash) -> Result<Trashed, BlobError> {
        let mut paths = self.list_trash().await?;
        paths.retain(|path| origin(path).is_some_and(|(of, _)| of == *blob));
        Ok(Trashed(paths))
    }

    /// Moves objects back from the trash, unless they have been stored again.
    pub async fn restore(&self, trashed: Trashed) -> Result<(), BlobError> {
        for path in trashed.0 {
            let Some((_, original)) = origin(&path) else { continue };
            match self.store.head(&original).await.map_err(BlobError::from) {
                Ok(_) => self.delete_path(&path).await?,
                Err(BlobError::NotFound) => drop(self.rename(&path, &original).await?),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Deletes objects from the trash.
    pub async fn delete_trashed(&self, trashed: Trashed) -> Result<(), BlobError> {
        for path in trashed.0 {
            self.delete_path(&path).await?;
        }
        Ok(())
    }

    /// The blobs of which anything is in the trash.
    pub async fn trashed_blobs(&self) -> Result<Vec<ContentHash>, BlobError> {
        let trash = self.list_trash().await?;
        let mut blobs: Vec<_> = trash.iter().filter_map(|path| Some(origin(path)?.0)).collect();
        blobs.sort_unstable();
        blobs.dedup();
        Ok(blobs)
    }

    /// Everything in the trash: nearly always nothing.
    async fn list_trash(&self) -> Result<Vec<Path>, BlobError> {
        let objects = self.store.list(Some(&Path::from(TRASH)));
        Ok(objects.map_ok(|object| object.location).try_collect().await?)
    }

    /// `false` if there was nothing.
    async fn rename(&self, from: &Path, to: &Path) -> Result<bool, BlobError> {
        match self.store.rename(from, to).await.map_err(BlobError::from) {
            Ok(()) => Ok(true),
            Err(BlobError::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A name that no other move has: `blob=<token>=<path>`.
fn trash_path(path: &Path) -> Path {
    let (token, flat) = (Uuid::new_v4().simple(), path.as_ref().replace('/', SEPARATOR));
    Path::from_iter([TRASH, &format!("blob{SEPARATOR}{token}{SEPARATOR}{flat}")])
}

/// The blob to which something in the trash belongs, and the path from which it was moved. Both follow from
/// that path alone: an earlier release wrote an image before the token.
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
            assert_ne!(path, trash_path(&key.path()), "each move has a name of its own");
        }
    }

    #[test]
    fn trash_of_an_earlier_release_is_understood() {
        let key = BlobKey::Blob(ContentHash::of(b"x"));
        let flat = key.path().as_ref().replace('/', "=");
        let image = "0193c2a4-7d1e-7c3a-9d52-3f1f5a3c9b10";
        let path = Path::from(format!("trash/{image}=67e5504410b1426f9247bb680e5fe0c8={flat}"));
        assert_eq!(origin(&path), Some((ContentHash::of(b"x"), key.path())));
        assert_eq!(origin(&Path::from("trash/whatever")), None);
    }
}
