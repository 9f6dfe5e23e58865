//! Removing what may be shared, without ever losing it.
//!
//! A blob belongs to all images of the same content, and a new one may come at any moment. So it is
//! first moved aside, and only then looked whether somebody needs it: whoever stored the same content
//! before the move is seen by that look, and gets it back; whoever stores it afterwards stores it
//! anew. What was moved aside is removed for good last. The steps may stop anywhere and be taken
//! again, by several processes at once.

use futures::TryStreamExt;
use object_store::{ObjectStoreExt, path::Path};

use super::{BlobError, BlobKey, Blobs};
use crate::domain::ImageId;

/// The folder of what was moved aside.
const TRASH: &str = "trash";

/// Stands for the `/` of an object's path: trash is a flat folder, which leaves no folders behind.
const SEPARATOR: &str = "=";

impl Blobs {
    /// Moves objects aside on behalf of a discarded image. Those that are not there are left out.
    pub async fn move_aside(&self, image: ImageId, keys: &[BlobKey]) -> Result<(), BlobError> {
        for key in keys {
            let from = key.path();
            self.rename(&from, &aside(image, &from)).await?;
        }
        Ok(())
    }

    /// Puts what was moved aside for `image` back where it was, unless it has been stored anew.
    pub async fn put_back(&self, image: ImageId) -> Result<(), BlobError> {
        for path in self.aside_for(image).await? {
            let Some(original) = original(&path) else { continue };
            match self.store.head(&original).await.map_err(BlobError::from) {
                Ok(_) => self.delete_path(&path).await?,
                Err(BlobError::NotFound) => self.rename(&path, &original).await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes for good what was moved aside for `image`.
    pub async fn remove_aside(&self, image: ImageId) -> Result<(), BlobError> {
        for path in self.aside_for(image).await? {
            self.delete_path(&path).await?;
        }
        Ok(())
    }

    /// The images for which anything was moved aside.
    pub async fn images_aside(&self) -> Result<Vec<ImageId>, BlobError> {
        let mut images: Vec<ImageId> = self
            .list_aside()
            .await?
            .iter()
            .filter_map(|path| parts(path)?.0.parse().ok())
            .collect();
        images.sort_unstable();
        images.dedup();
        Ok(images)
    }

    async fn aside_for(&self, image: ImageId) -> Result<Vec<Path>, BlobError> {
        let image = image.to_string();
        let mut paths = self.list_aside().await?;
        paths.retain(|path| parts(path).is_some_and(|(of, _)| of == image));
        Ok(paths)
    }

    /// Everything in the trash: nearly always nothing.
    async fn list_aside(&self) -> Result<Vec<Path>, BlobError> {
        let objects = self.store.list(Some(&Path::from(TRASH)));
        Ok(objects.map_ok(|object| object.location).try_collect().await?)
    }

    async fn rename(&self, from: &Path, to: &Path) -> Result<(), BlobError> {
        match self.store.rename(from, to).await.map_err(BlobError::from) {
            Err(BlobError::NotFound) => Ok(()),
            other => other,
        }
    }

    async fn delete_path(&self, path: &Path) -> Result<(), BlobError> {
        match self.store.delete(path).await.map_err(BlobError::from) {
            Err(BlobError::NotFound) => Ok(()),
            other => other,
        }
    }
}

fn aside(image: ImageId, path: &Path) -> Path {
    let name = format!("{image}{SEPARATOR}{}", path.as_ref().replace('/', SEPARATOR));
    Path::from_iter([TRASH, &name])
}

/// The image for whom, and the path from which it was moved.
fn parts(path: &Path) -> Option<(&str, &str)> {
    path.filename()?.split_once(SEPARATOR)
}

fn original(path: &Path) -> Option<Path> {
    let (_, flat) = parts(path)?;
    Path::parse(flat.replace(SEPARATOR, "/")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ContentHash;

    #[test]
    fn what_was_moved_aside_knows_where_it_was() {
        let image = ImageId::new();
        for key in [BlobKey::Blob(ContentHash::of(b"x")), BlobKey::Incoming(image)] {
            let path = aside(image, &key.path());
            assert_eq!(path.parts().count(), 2, "{path} is flat");
            assert_eq!(original(&path), Some(key.path()));
            assert_eq!(parts(&path).map(|(of, _)| of.to_owned()), Some(image.to_string()));
        }
    }
}
