//! What a program opens for workers and services.

use std::{sync::Arc, time::Duration};

use safelight_blobs::Blobs;
use safelight_config::Config;
use safelight_queue::{DynJobQueue, OutboxSignal};
use safelight_removal::{InstallationGuard, Remover};
use safelight_shared_cache::SharedCache;
use safelight_store::DynStore;

/// What the program opens for this half. Only the functions that put the worker and the services together
/// take all of it; each part takes the fields that it uses.
#[derive(Clone)]
pub struct WorkerParts {
    /// The configuration.
    pub config: Arc<Config>,
    /// The source of truth.
    pub store: DynStore,
    /// Carries job notices.
    pub queue: DynJobQueue,
    /// The bytes.
    pub blobs: Blobs,
    /// The cache that nodes share, if one is configured.
    pub shared_cache: Option<SharedCache>,
    /// Notifies the relay of this process of new rows in the outbox.
    pub outbox_signal: OutboxSignal,
}

impl WorkerParts {
    pub(crate) fn installation_guard(&self) -> InstallationGuard {
        let grace = Duration::from_millis(self.config.recovery_grace_ms);
        InstallationGuard::new(self.store.clone(), self.blobs.clone(), grace)
    }

    pub(crate) fn remover(&self) -> Remover {
        Remover::new(self.store.clone(), self.blobs.clone(), self.installation_guard())
    }
}
