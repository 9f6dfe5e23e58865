//! Ties the blob store to the database: each names the installation, and both have to agree.

use safelight_blobs::{BlobError, Blobs, WrongStore};
use safelight_config::BlobUrl;
use safelight_store::{DynStore, PageRequest};

use crate::error::CommandError;

/// Images whose bytes are looked for in a store that was never marked.
const SAMPLE: u32 = 50;

/// The blob store at `url`, if it is that of the database's installation. An empty store is marked for a new
/// installation, and the store of a release that did not mark it for the database that knows what it contains.
pub async fn join(blobs: Blobs, store: &DynStore, url: &BlobUrl) -> Result<Blobs, CommandError> {
    let installation = store.installation().await.map_err(CommandError::failed)?;
    let failed = |error| unusable(url, &error);
    match blobs.read_mark().await.map_err(failed)? {
        Some(found) if found == installation.id => {}
        Some(found) => return Err(failed(WrongStore::Foreign(found).into())),
        None if installation.is_marked => return Err(failed(WrongStore::Unmarked.into())),
        None => {
            let is_ours = if installation.has_images {
                has_some_of_our_images(&blobs, store).await?
            } else {
                blobs.is_empty().await.map_err(failed)?
            };
            if !is_ours {
                return Err(foreign_content(url, installation.has_images));
            }
            blobs.mark(installation.id).await.map_err(failed)?;
        }
    }
    if !installation.is_marked {
        store.record_mark().await.map_err(CommandError::failed)?;
    }
    let blobs = blobs.of_installation(installation.id);
    blobs.confirm().await.map_err(failed)?;
    Ok(blobs)
}

/// Whether the store has the bytes of any of the latest images; or nothing, if none of them has bytes.
async fn has_some_of_our_images(blobs: &Blobs, store: &DynStore) -> Result<bool, CommandError> {
    let page = PageRequest { limit: SAMPLE, before: None };
    let latest = store.list_images(None, &page).await.map_err(CommandError::failed)?;
    let mut is_any_expected = false;
    for image in latest.images.iter().filter(|image| !image.discarded) {
        is_any_expected = true;
        let found = blobs.has_upload(image.id, image.sha256).await;
        if found.map_err(CommandError::failed)? {
            return Ok(true);
        }
    }
    if is_any_expected {
        return Ok(false);
    }
    blobs.is_empty().await.map_err(CommandError::failed)
}

fn foreign_content(url: &BlobUrl, has_images: bool) -> CommandError {
    let what = if has_images {
        "has none of the pictures that the database knows"
    } else {
        "has pictures, and the database knows none"
    };
    CommandError::failed(format!("the blob store {url} {what}")).hint(
        "is it the right store, and mounted, and is it the right database? \
         If both are right, run `safelight adopt-store`",
    )
}

/// A store that cannot be used, and what to do about it.
pub fn unusable(url: &BlobUrl, error: &BlobError) -> CommandError {
    let failed = CommandError::failed(format!("cannot open the blob store {url}: {error}"));
    match (error, url) {
        (BlobError::WrongStore(WrongStore::Unmarked), BlobUrl::File(_)) => failed.hint(
            "is its volume mounted, and is it the right folder? If the store was lost or replaced on purpose, \
             run `safelight adopt-store`",
        ),
        (BlobError::WrongStore(WrongStore::Unmarked), BlobUrl::S3 { .. }) => failed.hint(
            "are the bucket and the prefix right? If the store was lost or replaced on purpose, run \
             `safelight adopt-store`",
        ),
        (BlobError::WrongStore(WrongStore::Damaged), _) => {
            failed.hint("if it is the right store, `safelight adopt-store --force` writes the mark again")
        }
        (BlobError::WrongStore(WrongStore::Divided(_)), _) => {
            failed.hint("mount one volume at the folder of the store, and none below it")
        }
        (BlobError::WrongStore(WrongStore::Foreign(_)), _) => failed.hint(
            "if the database was lost, put it back or run `safelight restore`. Otherwise use a store of its own; \
             `safelight adopt-store --force` takes this one from the other installation",
        ),
        (_, BlobUrl::File(_)) => failed.hint("is the folder writable?"),
        (_, BlobUrl::S3 { .. }) => failed.hint(
            "are AWS_ENDPOINT, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, the bucket, and this machine's clock \
             right?",
        ),
    }
}
