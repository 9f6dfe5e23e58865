//! Removing what may be shared, without ever losing it.
//!
//! A blob belongs to all images of the same content, and a new one may come at any moment. So it is
//! first moved aside, and only then looked whether somebody needs it: whoever stored the same content
//! before the move is seen by that look, and gets it back; whoever stores it afterwards stores it
//! anew. What was moved aside is removed for good last. The steps may stop anywhere and be taken
//! again, by several processes at once: each move makes a name of its own, and a decision is carried
//! out on the names that were there before it was made, never on what another has moved since.

use futures::TryStreamExt;
use object_store::{ObjectStoreExt, path::Path};
use uuid::Uuid;

use super::{BlobError, BlobKey, Blobs};
use crate::domain::ImageId;

/// The folder of what was moved aside.
const TRASH: &str = "trash";

/// Stands for the `/` of an object's path: trash is a flat folder, which leaves no folders behind.
const SEPARATOR: &str = "=";

/// Objects that were moved aside for one image by some moment.
pub struct Aside(Vec<Path>);

impl Blobs {
    /// Moves objects aside on behalf of a discarded image. Those that are not there are left out.
    pub async fn move_aside(&self, image: ImageId, keys: &[BlobKey]) -> Result<(), BlobError> {
        for key in keys {
            let from = key.path();
            self.rename(&from, &aside(image, &from)).await?;
        }
        Ok(())
    }

    /// What has been moved aside for `image` until now, by whomever.
    pub async fn aside_for(&self, image: ImageId) -> Result<Aside, BlobError> {
        let image = image.to_string();
        let mut paths = self.list_aside().await?;
        paths.retain(|path| parts(path).is_some_and(|(of, _)| of == image));
        Ok(Aside(paths))
    }

    /// Puts what was moved aside back where it was, unless it has been stored anew.
    pub async fn put_back(&self, aside: Aside) -> Result<(), BlobError> {
        for path in aside.0 {
            let Some(original) = original(&path) else { continue };
            match self.store.head(&original).await.map_err(BlobError::from) {
                Ok(_) => self.delete_path(&path).await?,
                Err(BlobError::NotFound) => self.rename(&path, &original).await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes for good what was moved aside.
    pub async fn remove_aside(&self, aside: Aside) -> Result<(), BlobError> {
        for path in aside.0 {
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
}

/// A name that no other move has: `<image>=<token>=<path>`.
fn aside(image: ImageId, path: &Path) -> Path {
    let (token, flat) = (Uuid::new_v4().simple(), path.as_ref().replace('/', SEPARATOR));
    Path::from_iter([TRASH, &format!("{image}{SEPARATOR}{token}{SEPARATOR}{flat}")])
}

/// The image for whom, and the path from which it was moved.
fn parts(path: &Path) -> Option<(&str, &str)> {
    let (image, rest) = path.filename()?.split_once(SEPARATOR)?;
    Some((image, rest.split_once(SEPARATOR)?.1))
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
            assert_ne!(path, aside(image, &key.path()), "each move has a name of its own");
        }
    }
}
