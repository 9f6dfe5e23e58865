//! Renditions whose bytes in the store are missing or damaged: made again from the original.

use std::time::Duration;

use chrono::{DateTime, Utc};
use moka::sync::Cache;
use safelight_blobs::Blobs;
use safelight_domain::ImageId;
use safelight_store::DamagedRendition;

use super::{image_view::Representation, on_demand::OnDemand, source::SingleFlight};
use crate::http::problem::{Problem, ProblemCode};

/// How often this node has one rendition made again. A store that returns wrong bytes for what was just written to it
/// would otherwise cause work without end.
const EVERY: Duration = Duration::from_mins(1);

/// Renditions that are remembered.
const AT_MOST: u64 = 10_000;

/// Has renditions made again. Clones share it.
#[derive(Clone)]
pub struct Repairs {
    blobs: Blobs,
    on_demand: OnDemand,
    /// By its path in the store, the record of a rendition that was found damaged lately.
    requested: Cache<String, DateTime<Utc>>,
    flights: SingleFlight<String, Result<(), Problem>>,
}

impl Repairs {
    /// Looks for originals in `blobs`, and queues jobs through `on_demand`.
    pub fn new(blobs: Blobs, on_demand: OnDemand) -> Self {
        let requested = Cache::builder().max_capacity(AT_MOST).time_to_live(EVERY).build();
        Self { blobs, on_demand, requested, flights: SingleFlight::default() }
    }

    /// Removes the record of a damaged rendition and queues the job that makes it again, once for all requests on all
    /// nodes. `problem` is what the client gets if nothing can make it.
    pub async fn request(
        &self,
        image: ImageId,
        shown: &Representation,
        problem: Problem,
    ) -> Result<(), Problem> {
        let Some(damaged) = shown.as_damaged() else { return Err(problem) };
        let path = shown.object.key.path().to_string();
        match self.requested.get(&path) {
            Some(made_at) if made_at == damaged.made_at => return Ok(()),
            Some(_) => return Err(damaged_again()),
            None => {}
        }
        let (owned, key) = (self.clone(), path.clone());
        let begin = || async move { owned.begin(image, damaged, key, problem).await };
        let result = self.flights.join(path, begin).await;
        result.value.unwrap_or_else(|| Err(Problem::internal(&"a repair panicked")))
    }

    async fn begin(
        self,
        image: ImageId,
        damaged: DamagedRendition,
        path: String,
        problem: Problem,
    ) -> Result<(), Problem> {
        let made_at = damaged.made_at;
        // Without its original it cannot be made again, and the record shows later what was lost.
        if !self.has_original(image, &damaged).await? {
            return Err(problem);
        }
        tracing::warn!(%image, %path, "a rendition is missing or damaged; it is made again");
        self.on_demand.request_again(image, damaged).await?;
        self.requested.insert(path, made_at);
        Ok(())
    }

    /// Whether there is something to make the rendition from. Whether that is right, the job finds out.
    async fn has_original(
        &self,
        image: ImageId,
        damaged: &DamagedRendition,
    ) -> Result<bool, Problem> {
        Ok(self.blobs.has_upload(image, damaged.of).await?)
    }
}

/// What was made again is damaged, too: the store does not return what is written to it.
pub fn damaged_again() -> Problem {
    Problem::new(
        ProblemCode::BlobsUnavailable,
        "The blob store returns other bytes than were written to it a moment ago.",
    )
}
