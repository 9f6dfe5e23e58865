//! How long this process waits for others.

use std::time::Duration;

/// How long a statement waits for another process's lock, and a read for a free connection.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
