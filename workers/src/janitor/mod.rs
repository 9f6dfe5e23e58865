//! The janitor: bytes that nobody owns. Uploads that died between storing their bytes and recording
//! them leave some ([`staged`]), and so do cancelled ones ([`discarded`]).

mod staged;

use std::time::Duration;

use safelight_blobs::BlobError;
use safelight_services::Services;
use safelight_store::StoreError;
use tokio_util::sync::CancellationToken;

use crate::{
    removal::{self, discarded},
    rescuer::every,
};

/// How often it looks for abandoned staged bytes, a listing of all that are there; unless the grace
/// time is so short that it must look more often.
const LONGEST_PERIOD: Duration = Duration::from_mins(5);

/// No sweep comes sooner after another than this, however short the grace time.
const SHORTEST_PERIOD: Duration = Duration::from_millis(250);

/// How often it looks for discarded images: an index that is nearly always empty.
const DISCARDED_PERIOD: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(crate) enum JanitorError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Blobs(#[from] BlobError),
}

/// Cleans up until `shutdown`.
pub async fn run(services: Services, shutdown: CancellationToken) {
    let half_grace = Duration::from_millis(services.config.staged_grace_ms / 2);
    let period = half_grace.clamp(SHORTEST_PERIOD, LONGEST_PERIOD);
    let work = async {
        tokio::join!(
            every(period, "clean up staged bytes", &services, staged::sweep),
            every(period, "empty the trash", &services, removal::resume),
            every(DISCARDED_PERIOD, "remove cancelled images", &services, discarded::remove),
        )
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = work => {}
    }
}
