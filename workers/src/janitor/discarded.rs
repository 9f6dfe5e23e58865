//! Images whose upload was cancelled: their bytes go, unless another image has the same. Every step
//! may be cut off, and taken again by any janitor.

use safelight_common::{blobs::BlobKey, domain::Image, services::Services};

use super::{JanitorError, purge};

/// Images in one statement.
const BATCH: u32 = 100;

/// Removes the bytes of all images that were discarded and that no worker can be writing for. Proxies
/// come first, since the renditions' names go with the bytes; while one of them does not confirm,
/// nothing is removed, and all is tried again with the next round.
pub(crate) async fn remove(services: Services) -> Result<(), JanitorError> {
    loop {
        let discarded = services.store.discarded(BATCH, purge::age(&services.config)).await?;
        let proxied = !services.config.purge_urls.is_empty() && !discarded.is_empty();
        let client = if proxied { Some(purge::client()?) } else { None };
        for image in &discarded {
            if let Some(client) = &client {
                purge::everywhere(client, &services.config, image).await?;
            }
            remove_bytes(&services, image).await?;
            services.store.mark_removed(image.id).await?;
            tracing::info!(image = %image.id, "removed the bytes of a cancelled upload");
        }
        if discarded.len() < BATCH as usize {
            return Ok(());
        }
    }
}

/// Takes up what a janitor that died had moved aside.
pub(crate) async fn resume(services: Services) -> Result<(), JanitorError> {
    for id in services.blobs.images_aside().await? {
        if let Some(image) = services.store.image(id).await? {
            decide(&services, &image).await?;
        } else {
            tracing::error!(image = %id, "the trash holds bytes of an unknown image");
        }
    }
    Ok(())
}

async fn remove_bytes(services: &Services, image: &Image) -> Result<(), JanitorError> {
    // Staged bytes are this image's alone.
    services.blobs.delete(&BlobKey::Incoming(image.id)).await?;
    if services.store.is_blob_wanted(&image.sha256).await? {
        return Ok(());
    }
    let renditions = image.renditions.iter().map(|made| BlobKey::rendition(image.sha256, made));
    let keys: Vec<BlobKey> = renditions.chain([BlobKey::Blob(image.sha256)]).collect();
    services.blobs.move_aside(image.id, &keys).await?;
    decide(services, image).await
}

/// After the move, never before: whoever stored the same content until then is seen now. And only over
/// what was moved before: whatever another janitor moves from now on is its own to decide.
async fn decide(services: &Services, image: &Image) -> Result<(), JanitorError> {
    let aside = services.blobs.aside_for(image.id).await?;
    if services.store.forget_blob(&image.sha256).await? {
        services.blobs.remove_aside(aside).await?;
    } else {
        services.blobs.put_back(aside).await?;
    }
    Ok(())
}
