//! What an audit found.

use anyhow::{Result, bail};

/// The result of an audit. Empty lists are good ones.
#[derive(Debug, Default)]
pub struct Report {
    /// Uploads that were answered with 202.
    pub accepted: usize,
    /// Tasks in the database; more than `accepted` if an answer did not arrive.
    pub tasks: usize,
    /// Their jobs.
    pub jobs: usize,
    /// The attempts that those took, together; as many as jobs if nothing had to be done again.
    pub attempts: u64,
    /// Promises that were not kept.
    pub lost: Vec<String>,
    /// Tasks without an end.
    pub stuck: Vec<String>,
    /// Effects that happened more than once.
    pub doubled: Vec<String>,
    /// What nobody needs and nobody has removed.
    pub left: Vec<String>,
}

impl Report {
    /// Whether all is as it should be.
    pub fn is_clean(&self) -> bool {
        [&self.lost, &self.stuck, &self.doubled, &self.left].iter().all(|list| list.is_empty())
    }

    /// Fails, with all that was found, unless all is as it should be.
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
