//! Decides after a failed attempt whether there is another one. The only place that does.

use std::time::Duration;

use metrics::counter;
use safelight_domain::{Failure, retry};
use safelight_store::{ClaimedJob, Outcome};

/// Claims of a job whose failures by outages do not count: with the default delays about a day.
const MOST_CLAIMS: u32 = 300;

/// How long failed attempts wait for the next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetryPolicy {
    backoff_base: Duration,
    backoff_cap: Duration,
}

impl RetryPolicy {
    pub fn from_ms(backoff_base_ms: u64, backoff_cap_ms: u64) -> Self {
        Self {
            backoff_base: Duration::from_millis(backoff_base_ms),
            backoff_cap: Duration::from_millis(backoff_cap_ms),
        }
    }

    /// Another attempt after a jittered delay, or the failure of the job if no attempt can help or none is
    /// left. Attempts that fail for an outage do not count, until there were so many that the job must be told from
    /// others: an object that can never be read.
    pub fn after_failure(&self, job: &ClaimedJob, failure: Failure) -> Outcome {
        if failure.code.is_outage() && job.lease.fence < MOST_CLAIMS {
            let delay = retry::job_delay(job.lease.fence, self.backoff_base, self.backoff_cap);
            return Outcome::Postponed(failure, delay);
        }
        if job.attempt >= failure.code.retries(job.kind).attempts(job.max_attempts) {
            return Outcome::Failed(failure);
        }
        let delay = retry::job_delay(job.attempt, self.backoff_base, self.backoff_cap);
        Outcome::Retry(failure, delay)
    }
}

/// The name of an attempt's outcome in traces and metrics, with its failure.
pub(crate) fn describe(outcome: &Outcome) -> (&'static str, Option<&Failure>) {
    match outcome {
        Outcome::Succeeded(_) => ("succeeded", None),
        Outcome::Retry(failure, _) => ("retry", Some(failure)),
        Outcome::Failed(failure) => ("failed", Some(failure)),
        Outcome::Postponed(failure, _) => ("postponed", Some(failure)),
        Outcome::Released => ("released", None),
    }
}

/// Counts and logs an attempt whose end the store has recorded.
pub(crate) fn record_settled(job: &ClaimedJob, outcome: &Outcome) {
    let (name, failure) = describe(outcome);
    let code = failure.map_or("none", |failure| failure.code.as_str());
    counter!(
        "safelight_attempts_total",
        "kind" => job.kind.as_str(), "outcome" => name, "code" => code,
    )
    .increment(1);
    match (outcome, failure) {
        (Outcome::Retry(_, delay), Some(failure)) => tracing::warn!(
            job = %job.lease.job, attempt = job.attempt, %failure, ?delay, "the attempt failed"
        ),
        // The outage itself is logged, once.
        (Outcome::Postponed(_, delay), Some(failure)) => tracing::debug!(
            job = %job.lease.job, attempt = job.attempt, %failure, ?delay, "the attempt is postponed"
        ),
        (_, Some(failure)) => tracing::warn!(
            job = %job.lease.job, attempt = job.attempt, %failure, "the job failed for good"
        ),
        _ => tracing::debug!(job = %job.lease.job, attempt = job.attempt, "the attempt {name}"),
    }
}
