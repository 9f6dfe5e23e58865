//! Where bodies wait before they are sent to a remote store.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::Semaphore;

/// A local folder for bodies before they are sent to a remote store, so that an incomplete body never reaches it,
/// and a slow client occupies disk instead of memory.
#[derive(Clone)]
pub(super) struct Spool {
    pub(super) folder: PathBuf,
    pub(super) parts: Arc<Semaphore>,
}
