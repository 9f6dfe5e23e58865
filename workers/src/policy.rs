//! What a failed attempt leads to. The one place that decides between another attempt and the end.

use std::time::Duration;

use metrics::counter;
use safelight_config::Config;
use safelight_domain::{Failure, retry};
use safelight_store::{ClaimedJob, Outcome};

/// Another attempt after a jittered delay; or, where no attempt can help or none is left, the end.
pub(crate) fn after_failure(job: &ClaimedJob, failure: Failure, config: &Config) -> Outcome {
    if job.attempt >= failure.code.retries(job.kind).attempts(job.max_attempts) {
        return Outcome::Failed(failure);
    }
    let base = Duration::from_millis(config.backoff_base_ms);
    let cap = Duration::from_millis(config.backoff_cap_ms);
    Outcome::Retry(failure, retry::job_delay(job.attempt, base, cap))
}

/// How traces and metrics call the end of an attempt, with what went wrong.
pub(crate) fn describe(outcome: &Outcome) -> (&'static str, Option<&Failure>) {
    match outcome {
        Outcome::Succeeded(_) => ("succeeded", None),
        Outcome::Retry(failure, _) => ("retry", Some(failure)),
        Outcome::Failed(failure) => ("failed", Some(failure)),
        Outcome::Released => ("released", None),
    }
}

/// Counts and logs an attempt whose end the store has recorded.
pub(crate) fn note_settled(job: &ClaimedJob, outcome: &Outcome) {
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
        (_, Some(failure)) => tracing::warn!(
            job = %job.lease.job, attempt = job.attempt, %failure, "the job failed for good"
        ),
        _ => tracing::debug!(job = %job.lease.job, attempt = job.attempt, "the attempt {name}"),
    }
}
