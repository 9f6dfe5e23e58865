//! The janitor: bytes that nobody owns. Uploads that died between storing their bytes and recording
//! them leave some ([`staged`]), and so do cancelled ones ([`discarded`]).

pub(crate) mod discarded;
mod staged;

use std::time::Duration;

use safelight_common::{blobs::BlobError, services::Services, store::StoreError};
use tokio_util::sync::CancellationToken;

use crate::rescuer::every;

/// How often it looks for abandoned staged bytes: a listing of all that are there.
const STAGED_PERIOD: Duration = Duration::from_mins(5);

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
    let work = async {
        tokio::join!(
            every(STAGED_PERIOD, "clean up staged bytes", &services, staged::sweep),
            every(STAGED_PERIOD, "empty the trash", &services, discarded::resume),
            every(DISCARDED_PERIOD, "remove cancelled images", &services, discarded::remove),
        )
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        _ = work => {}
    }
}
