//! What jobs that have not succeeded say of an image.

use safelight_domain::{Failure, JobKind, Status};
use safelight_store::BlockingJob;

/// Why jobs of these kinds have failed for good; `None` if they have not, or are being tried again.
pub(super) fn failure<'a>(jobs: &'a [BlockingJob], kinds: &[JobKind]) -> Option<&'a Failure> {
    let mut concerned = jobs.iter().filter(|job| kinds.contains(&job.kind));
    if concerned.clone().any(|job| job.status != Status::Failed) {
        return None;
    }
    concerned.next()?.failure.as_ref()
}
