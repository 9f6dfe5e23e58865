//! The registry of jobs: what each kind of job does.
//!
//! A job may run any number of times, also concurrently: blobs are named by content, and the store records
//! one result per attempt.
//!
//! To add a kind: its name in [`JobKind`], a file here that implements [`Job`], and its line in [`of`], which
//! does not compile without it. Dispatch, slots and queues follow from that.

mod delete;
pub(crate) mod job;
pub(crate) mod presets;
mod source;
mod thumbnail;
mod verify;
mod write;

use safelight_domain::{ErrorCode, Failure, JobKind, Lane};
use safelight_queue::Queue;
use safelight_store::{ClaimedJob, Outcome};

pub(crate) use self::job::JobParts;
pub use self::job::decoder_options;
use self::job::{Context, Job};

/// What each kind of job does.
fn of(kind: JobKind) -> &'static dyn Job {
    match kind {
        JobKind::Write => &write::Write,
        JobKind::Thumbnail => &thumbnail::Thumbnail,
        JobKind::Verify => &verify::Verify,
        JobKind::Delete => &delete::Delete,
    }
}

/// Runs one attempt of a job.
pub(crate) async fn run(context: &Context, job: &ClaimedJob) -> Result<Outcome, Failure> {
    let found = of(job.kind);
    if job.image.discarded && !found.runs_without_image() {
        // Claimed or retried by hand while its image was being discarded: the bytes are being removed, and
        // new renditions would be left over.
        let why = Failure::new(ErrorCode::BlobMissing, "the image was deleted or cancelled");
        return Ok(Outcome::Failed(why));
    }
    let outcome = found.run(context, job).await?;
    // What was written, or removed, may have been so somewhere else: below the mount point of a volume that was
    // unmounted meanwhile, or in a bucket that was replaced.
    context.parts.blobs.confirm().await.map_err(source::failure)?;
    Ok(outcome)
}

/// Concurrent attempts of this kind in a worker with this concurrency.
pub(crate) fn slots(kind: JobKind, concurrency: usize) -> usize {
    of(kind).slots().count(concurrency)
}

/// The newest version of jobs of this kind that this release understands.
pub(crate) fn newest_version(kind: JobKind) -> u32 {
    of(kind).newest_version()
}

/// The queues of `kinds` that a worker of `lanes` takes jobs from.
pub(crate) fn queues(kinds: &[JobKind], lanes: &[Lane]) -> Vec<Queue> {
    let of_kind = |&kind: &JobKind| {
        let lanes = lanes.iter().filter(move |lane| of(kind).lanes().contains(lane));
        lanes.map(move |&lane| Queue { kind, lane })
    };
    kinds.iter().flat_map(of_kind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_bound_jobs_get_more_slots() {
        for (concurrency, processor, storage) in [(3, 3, 12), (0, 1, 4)] {
            assert_eq!(slots(JobKind::Thumbnail, concurrency), processor);
            assert_eq!(slots(JobKind::Write, concurrency), storage);
        }
    }
}
