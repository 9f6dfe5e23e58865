//! Jobs that have not succeeded for an image.

use safelight_domain::{Failure, JobKind, Status};
use safelight_store::BlockingJob;

/// Why jobs of these kinds have failed for good; `None` if they have not, or are being retried.
pub(super) fn failure<'a>(jobs: &'a [BlockingJob], kinds: &[JobKind]) -> Option<&'a Failure> {
    let mut relevant = jobs.iter().filter(|job| kinds.contains(&job.kind));
    if relevant.clone().any(|job| job.status != Status::Failed) {
        return None;
    }
    relevant.next()?.failure.as_ref()
}
