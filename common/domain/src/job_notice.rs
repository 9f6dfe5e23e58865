//! The message that the job queue carries from the store's outbox to workers.

use crate::{JobId, JobKind, Lane, TraceContext};

/// The contents of a message: the job to claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct JobNotice {
    /// The job.
    pub job: JobId,
    /// Its kind, which selects the queue.
    pub kind: JobKind,
    /// Its lane, which selects the queue.
    pub lane: Lane,
    /// The job's attempt number when the message was created, which identifies late messages of earlier
    /// attempts.
    pub generation: u32,
    /// The span that created the job. Only for tracing.
    pub trace: Option<TraceContext>,
}
