//! The janitor: staged bytes that nobody owns. They are left by uploads that died between storing
//! the bytes and recording them.

use std::time::Duration;

use chrono::TimeDelta;
use futures::TryStreamExt;
use safelight_common::{
    blobs::{BlobError, BlobKey, Incoming, StagedUpload},
    domain::ImageId,
    services::Services,
    store::StoreError,
};
use tokio_util::sync::CancellationToken;

use crate::rescuer::every;

/// How often it looks around, unless the grace time is so short that it must look more often.
const LONGEST_PERIOD: Duration = Duration::from_mins(5);

/// No sweep comes sooner after another than this, however short the grace time.
const SHORTEST_PERIOD: Duration = Duration::from_millis(250);

/// Images asked for in one statement.
const BATCH: usize = 500;

#[derive(Debug, thiserror::Error)]
enum JanitorError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

/// Cleans up at once and then every five minutes, until `shutdown`.
pub async fn run(services: Services, shutdown: CancellationToken) {
    let half_grace = Duration::from_millis(services.config.staged_grace_ms / 2);
    let period = half_grace.clamp(SHORTEST_PERIOD, LONGEST_PERIOD);
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = every(period, "clean up staged bytes", &services, sweep) => {}
    }
}

/// Looks at all staged bytes older than `staged_grace_ms`, by the clock that dated them: by this
/// machine's, if it ran ahead, bytes that have just come would be old.
async fn sweep(services: Services) -> Result<(), JanitorError> {
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
/// them could.
async fn finish_promotion(services: &Services, image: ImageId) -> Result<(), JanitorError> {
    match services.store.image(image).await? {
        Some(image) if image.stored_at.is_some() => {
            let staged = StagedUpload { image: image.id, sha256: image.sha256, bytes: image.bytes };
            Ok(services.blobs.promote(&staged).await?)
        }
        _ => Ok(()),
    }
}
