//! What the bytes of an object must be: those of a blob say it by their name, those of a rendition are recorded.

use safelight_blobs::BlobKey;
use safelight_domain::{ContentHash, Rendition};
use safelight_store::DynStore;

use super::contents::Contents;
use crate::error::CommandError;

/// Looks hashes up. A rendition has one if an image of the snapshot still has it.
pub struct ExpectedHashes<'a> {
    contents: Contents,
    store: &'a DynStore,
    /// The renditions of the blob that was asked for last.
    last: Option<(ContentHash, Vec<Rendition>)>,
}

impl<'a> ExpectedHashes<'a> {
    /// Finds images in the list `contents`, and their renditions in `store`.
    pub fn new(contents: Contents, store: &'a DynStore) -> Self {
        Self { contents, store, last: None }
    }

    /// The hash that the bytes under `key` must have; `None` if there is no record of it. Renditions are to be asked for
    /// in the order of their paths.
    pub async fn of(&mut self, key: &BlobKey) -> Result<Option<ContentHash>, CommandError> {
        let of = match key {
            BlobKey::Blob(hash) => return Ok(Some(*hash)),
            BlobKey::Rendition { of, .. } => *of,
            BlobKey::Incoming(_) => return Ok(None),
        };
        let known = match self.last.take().filter(|(blob, _)| *blob == of) {
            Some((_, known)) => known,
            None => self.renditions(of).await?,
        };
        let (_, known) = self.last.insert((of, known));
        let made = known.iter().find(|made| BlobKey::rendition(of, made) == *key);
        Ok(made.map(|made| made.sha256))
    }

    /// The renditions of a blob, as any of its images has them.
    async fn renditions(&mut self, of: ContentHash) -> Result<Vec<Rendition>, CommandError> {
        while self.contents.needs(&of).await.map_err(CommandError::failed)? {
            let Some(needed) = self.contents.next().await.map_err(CommandError::failed)? else {
                break;
            };
            let image = self.store.image(needed.image).await.map_err(CommandError::failed)?;
            let renditions = image.filter(|image| image.sha256 == of).map(|found| found.renditions);
            if let Some(renditions) = renditions.filter(|renditions| !renditions.is_empty()) {
                return Ok(renditions);
            }
        }
        Ok(Vec::new())
    }
}
