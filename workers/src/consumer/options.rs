//! What a worker works on.

use safelight_domain::{JobKind, Lane};

/// What a worker works on.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// The kinds of jobs that it takes.
    pub kinds: Vec<JobKind>,
    /// The lanes that it takes them from.
    pub lanes: Vec<Lane>,
    /// Thumbnail jobs at once, at least 1; write and delete jobs get four times as many slots of their own.
    pub concurrency: usize,
}

impl WorkerOptions {
    /// All kinds on all lanes.
    pub fn all(concurrency: usize) -> Self {
        Self { kinds: JobKind::ALL.to_vec(), lanes: Lane::ALL.to_vec(), concurrency }
    }
}
