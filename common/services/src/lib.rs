//! What every role is given: the configuration and the opened parts.

use std::sync::Arc;

use safelight_blobs::Blobs;
use safelight_config::Config;
use safelight_queue::{DynJobQueue, OutboxSignal};
use safelight_shared_cache::SharedCache;
use safelight_store::DynStore;

/// Handles to the parts that the configuration chose. Clones share them.
#[derive(Clone)]
pub struct Services {
    /// The configuration.
    pub config: Arc<Config>,
    /// The truth.
    pub store: DynStore,
    /// Notices between processes.
    pub queue: DynJobQueue,
    /// The bytes.
    pub blobs: Blobs,
    /// The cache that nodes share, if there is one.
    pub shared_cache: Option<SharedCache>,
    /// Tells the relay of this process that there is something in the outbox.
    pub outbox_signal: OutboxSignal,
}
