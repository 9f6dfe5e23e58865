//! The options of a worker.

use safelight_domain::{JobKind, Lane};

/// The jobs that a worker takes.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// The kinds of jobs that it takes.
    pub kinds: Vec<JobKind>,
    /// The lanes that it takes them from.
    pub lanes: Vec<Lane>,
    /// The number of processors for jobs, at least 1. The slots of each kind follow from it: see `SlotClass`.
    pub concurrency: usize,
}

impl WorkerOptions {
    /// All kinds on all lanes.
    pub fn all(concurrency: usize) -> Self {
        Self { kinds: JobKind::ALL.to_vec(), lanes: Lane::ALL.to_vec(), concurrency }
    }
}
