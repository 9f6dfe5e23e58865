//! Staged bytes that nobody owns: left by uploads that died between storing and recording them.

use chrono::TimeDelta;
use futures::TryStreamExt;
use safelight_blobs::{BlobKey, Incoming, StagedUpload};
use safelight_domain::ImageId;
use safelight_services::Services;

use super::JanitorError;

/// Images asked for in one statement.
const BATCH: usize = 500;

/// Looks at all staged bytes older than `staged_grace_ms`, by the clock that dated them: by this
/// machine's, if it ran ahead, bytes that have just come would be old.
pub(super) async fn sweep(services: Services) -> Result<(), JanitorError> {
    let now = services.blobs.clock().await?;
    let grace = i64::try_from(services.config.staged_grace_ms).unwrap_or(i64::MAX);
    let Some(before) =
        TimeDelta::try_milliseconds(grace).and_then(|grace| now.checked_sub_signed(grace))
    else {
        return Ok(());
    };
    let cut_off = services.blobs.remove_cut_off(before).await?;
    if cut_off > 0 {
        tracing::info!(removed = cut_off, "removed what a crash cut off while it arrived");
    }
    let old = |staged: Incoming| {
        std::future::ready(Ok((staged.modified < before).then_some(staged.image)))
    };
    let mut batches =
        std::pin::pin!(services.blobs.incoming().try_filter_map(old).try_chunks(BATCH));
    while let Some(batch) = batches.try_next().await.map_err(|error| error.1)? {
        clean(&services, &batch).await?;
    }
    Ok(())
}

async fn clean(services: &Services, staged: &[ImageId]) -> Result<(), JanitorError> {
    let owned = services.store.existing_images(staged).await?;
    let mut removed = 0_u32;
    for &image in staged {
        if owned.contains(&image) {
            finish_promotion(services, image).await?;
        } else {
            services.blobs.delete(&BlobKey::Incoming(image)).await?;
            removed += 1;
        }
    }
    if removed > 0 {
        tracing::info!(removed, "removed staged bytes of uploads that were never accepted");
    }
    Ok(())
}

/// Staged bytes of an image whose write job is done: a move that was cut off half-way (object
/// stores copy, then delete), or a stale worker's. Moving them again cannot lose anything; deleting
/// them could. (Those of a discarded image are removed with it.)
async fn finish_promotion(services: &Services, image: ImageId) -> Result<(), JanitorError> {
    match services.store.image(image).await? {
        Some(image) if image.stored_at.is_some() && !image.discarded => {
            let staged = StagedUpload { image: image.id, sha256: image.sha256, bytes: image.bytes };
            Ok(services.blobs.promote(&staged).await?)
        }
        _ => Ok(()),
    }
}
