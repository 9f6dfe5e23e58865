//! Calls about one job that both databases carry out together with others of their kind.

use std::{collections::HashSet, time::Duration};

use safelight_domain::{JobId, JobNotice, WorkerId};
use safelight_store::{Lease, Outcome, StoreError};

/// One call of [`Jobs::claim`](safelight_store::Jobs::claim).
pub struct Claiming {
    pub notice: JobNotice,
    pub redelivered: bool,
    pub worker: WorkerId,
    pub lease: Duration,
    pub understood: u32,
}

/// One call of [`Jobs::settle`](safelight_store::Jobs::settle).
pub struct Settling {
    pub lease: Lease,
    pub outcome: Outcome,
}

/// Separates calls about different jobs from further ones about the same: of two calls about one job the second must
/// see the result of the first.
pub fn one_per_job<C>(
    calls: impl IntoIterator<Item = C>,
    job: impl Fn(&C) -> JobId,
) -> (Vec<C>, Vec<C>) {
    let mut jobs = HashSet::new();
    calls.into_iter().partition(|call| jobs.insert(job(call)))
}

/// The error of a call that nobody serves any more.
pub fn gone() -> StoreError {
    sqlx::Error::WorkerCrashed.into()
}
