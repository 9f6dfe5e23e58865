//! The delete job: removes everything that is stored for one image. It is due once no worker can be writing
//! for the image and no delivery node has it cached, so nothing comes back afterwards.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::{CacheKey, ErrorCode, Failure, Removal};
use safelight_removal::RemovalError;
use safelight_shared_cache::SharedCache;
use safelight_store::{ClaimedJob, Effect, Outcome};
use tokio::time::Instant;

use super::{
    job::{Context, Job, SlotClass, database_unavailable},
    source,
};
use crate::removal::PurgeError;

/// A job takes a multiple of this, so that its duration does not reveal whether another owner has the same
/// bytes, in which case they are not removed.
const GRAIN: Duration = Duration::from_millis(250);

/// Removes everything that is stored for an image.
pub(super) struct Delete;

#[async_trait]
impl Job for Delete {
    fn slots(&self) -> SlotClass {
        SlotClass::Storage
    }

    fn runs_without_image(&self) -> bool {
        true
    }

    async fn run(&self, context: &Context, job: &ClaimedJob) -> Result<Outcome, Failure> {
        let (parts, started) = (&context.parts, Instant::now());
        let removal = parts.deletions.removal(job.task).await;
        // `None` only if another attempt has completed the job: the result of this one does not count.
        let Some(Removal { presets, objects }) =
            removal.map_err(|error| database_unavailable(&error))?
        else {
            let why = "the image was removed by another attempt";
            return Err(Failure::new(ErrorCode::LeaseLost, why));
        };
        safelight_fail_points::hit("delete.started").await;
        parts.remover.remove_image(&job.image).await.map_err(failure)?;
        safelight_fail_points::hit("delete.removed").await;
        // Also if other owners have equal bytes: those are different objects in the cache.
        let objects: Vec<_> =
            objects.iter().map(|object| CacheKey::of(&job.image.owner, object)).collect();
        forget_cached(parts.shared_cache.as_ref(), &objects).await?;
        let presets = presets.iter().map(String::as_str);
        let purged = parts.purger.purge(job.image.id, presets).await;
        purged.map_err(|error| not_purged(&error))?;
        safelight_fail_points::hit("delete.purged").await;
        tokio::time::sleep_until(started + whole_grains(started.elapsed())).await;
        let proxies = parts.purger.proxies();
        tracing::info!(image = %job.image.id, "removed a deleted image");
        Ok(Outcome::Succeeded(vec![Effect::ForgetImage { proxies }]))
    }
}

fn whole_grains(elapsed: Duration) -> Duration {
    let grains = elapsed.as_millis() / GRAIN.as_millis() + 1;
    GRAIN * u32::try_from(grains).unwrap_or(u32::MAX)
}

async fn forget_cached(cache: Option<&SharedCache>, objects: &[CacheKey]) -> Result<(), Failure> {
    let Some(cache) = cache else { return Ok(()) };
    cache.forget(objects).await.map_err(|error| {
        tracing::warn!(%error, "the shared cache does not forget a deleted image");
        Failure::new(ErrorCode::CacheUnavailable, "the shared cache did not answer")
    })
}

/// As a job's failure. The errors of engines go to the log only.
fn failure(error: RemovalError) -> Failure {
    match error {
        RemovalError::Store(error) => database_unavailable(&error),
        RemovalError::Blobs(error) => source::failure(error),
        RemovalError::BeingMoved => {
            Failure::new(ErrorCode::StoreUnavailable, "another removal is moving the bytes")
        }
    }
}

/// As a job's failure. The addresses of proxies go to the log only.
fn not_purged(error: &PurgeError) -> Failure {
    tracing::warn!(error = error as &dyn std::error::Error, "cannot purge a proxy");
    let message = "a caching proxy did not confirm that it has the image no more";
    Failure::new(ErrorCode::ProxyUnavailable, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletion_time_is_rounded_up_to_whole_grains() {
        let rounded = |ms| whole_grains(Duration::from_millis(ms)).as_millis();
        assert_eq!([rounded(0), rounded(40), rounded(249)], [250; 3]);
        assert_eq!([rounded(250), rounded(499), rounded(500)], [500, 500, 750]);
    }
}
