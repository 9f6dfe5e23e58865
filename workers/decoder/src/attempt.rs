//! The part of a job's attempt that decoding needs.

use std::{any::Any, sync::Arc};

use safelight_domain::{Lane, Owner};
use tokio_util::sync::CancellationToken;

/// The part of a job's attempt that decoding needs.
pub struct Attempt {
    /// The permit to use one processor, of any type. Work that cannot be aborted holds a clone, so that the
    /// permit stays taken if the work outlives its attempt.
    pub slot: Arc<dyn Any + Send + Sync>,
    /// Decides the priority: the pictures of backfills are decoded at a lower one.
    pub lane: Lane,
    /// Whose pictures it decodes: no decoder reads those of two owners.
    pub owner: Owner,
    /// Cancelled once the result is no longer needed.
    pub stop: CancellationToken,
}
