//! What the store hands to the job queue, and the queue to workers.

use crate::{JobId, JobKind, Lane, TraceContext};

/// All that a broker message carries: which job to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct JobNotice {
    /// The job.
    pub job: JobId,
    /// Its kind (which queue).
    pub kind: JobKind,
    /// Its lane (which queue).
    pub lane: Lane,
    /// The job's attempt number when the message was made; an earlier attempt's message that comes
    /// late is told by it.
    pub generation: u32,
    /// Where in a trace the job was made. Only for showing: `None` costs nothing but that.
    pub trace: Option<TraceContext>,
}
