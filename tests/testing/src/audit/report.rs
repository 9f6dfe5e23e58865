//! The result of an audit.

use anyhow::{Result, bail};

/// The result of an audit. All lists of a correct deployment are empty.
#[derive(Debug, Default)]
pub struct Report {
    /// Uploads whose response was 202.
    pub accepted: usize,
    /// Tasks in the database; more than `accepted` if a response was lost.
    pub tasks: usize,
    /// The jobs of these tasks.
    pub jobs: usize,
    /// The attempts of all jobs; equal to `jobs` if nothing was repeated.
    pub attempts: u64,
    /// Accepted uploads that are missing or damaged.
    pub lost: Vec<String>,
    /// Renditions that do not show their original, although their bytes are those recorded.
    pub wrong: Vec<String>,
    /// Tasks that did not end.
    pub stuck: Vec<String>,
    /// Effects that happened more than once.
    pub doubled: Vec<String>,
    /// Unfinished work, and bytes of images that are removed, and renditions that nothing refers to. Without blobs that no
    /// image ever had: an upload that died before it was recorded leaves its bytes to a collection of garbage.
    pub left: Vec<String>,
}

impl Report {
    /// Whether the audit found no difference.
    pub fn is_clean(&self) -> bool {
        let Self { lost, wrong, stuck, doubled, left, .. } = self;
        [lost, wrong, stuck, doubled, left].iter().all(|list| list.is_empty())
    }

    /// Fails with everything that was found, unless the report is clean.
    pub fn clean(self) -> Result<Self> {
        if self.is_clean() {
            return Ok(self);
        }
        bail!("the audit found: {self:#?}")
    }

    /// Attempts beyond the first of each job.
    pub fn repeated(&self) -> u64 {
        self.attempts.saturating_sub(self.jobs as u64)
    }
}
