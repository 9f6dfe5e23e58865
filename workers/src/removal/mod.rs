//! Removing bytes for good: of cancelled uploads ([`discarded`], the janitor's), of deleted images (the delete
//! job's) and of what nobody refers to (a backfill's). Every step may be cut off, and taken again by
//! anybody (ADR 4).

pub(crate) mod discarded;
pub(crate) mod purge;

use safelight_blobs::{BlobError, BlobKey};
use safelight_domain::{ContentHash, Image};
use safelight_services::Services;
use safelight_store::StoreError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RemovalError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blobs(#[from] BlobError),
    #[error(transparent)]
    Purge(#[from] purge::PurgeError),
}

/// Removes an image's bytes, those of its blob only if no other image needs them.
pub(crate) async fn remove_bytes(services: &Services, image: &Image) -> Result<(), RemovalError> {
    // Staged bytes are this image's alone.
    services.blobs.delete(&BlobKey::Incoming(image.id)).await?;
    let renditions = image.renditions.iter().map(|made| BlobKey::rendition(image.sha256, made));
    let keys: Vec<BlobKey> = renditions.chain([BlobKey::Blob(image.sha256)]).collect();
    remove_blob(services, &image.sha256, &keys).await?;
    Ok(())
}

/// Removes a blob with its renditions, unless an image needs it. Answers whether none does.
pub(crate) async fn remove_blob(
    services: &Services,
    blob: &ContentHash,
    keys: &[BlobKey],
) -> Result<bool, RemovalError> {
    // Spares those who share it the moment in which it is not where it should be.
    if services.store.is_blob_wanted(blob).await? {
        return Ok(false);
    }
    safelight_fail_points::hit("removal.looked").await;
    services.blobs.move_aside(keys).await?;
    safelight_fail_points::hit("removal.moved").await;
    decide(services, blob).await
}

/// Takes up what others had moved aside when they died.
pub(crate) async fn resume(services: Services) -> Result<(), RemovalError> {
    for blob in services.blobs.blobs_aside().await? {
        decide(&services, &blob).await?;
    }
    Ok(())
}

/// After the move, never before: whoever stored the same content until then is seen now. And only over
/// what was moved before: whatever another moves from now on is its own to decide.
async fn decide(services: &Services, blob: &ContentHash) -> Result<bool, RemovalError> {
    let aside = services.blobs.aside_of(blob).await?;
    if services.store.forget_blob(blob).await? {
        safelight_fail_points::hit("removal.decided").await;
        services.blobs.remove_aside(aside).await?;
        Ok(true)
    } else {
        services.blobs.put_back(aside).await?;
        Ok(false)
    }
}
