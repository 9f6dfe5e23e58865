//! The bytes of uploads that were stored and then not recorded.

use std::{sync::Arc, time::Duration};

use safelight_domain::ContentHash;
use safelight_removal::Remover;
use tokio::{sync::Semaphore, time::sleep};

/// The limit of uploads whose bytes a node removes later.
const MAX_LATER: usize = 4096;

/// Removes them, unless they are those of an image. What is left when a node dies, or is too much for it, is collected
/// as garbage. Clones are the same.
#[derive(Clone)]
pub struct RejectedBytes {
    remover: Remover,
    grace: Duration,
    later: Arc<Semaphore>,
}

impl RejectedBytes {
    /// With `grace`, the time after which a database that did not answer has recorded an upload or never will.
    pub fn new(remover: Remover, grace: Duration) -> Self {
        Self { remover, grace, later: Arc::new(Semaphore::new(MAX_LATER)) }
    }

    /// Removes the bytes of an upload that certainly is not recorded.
    pub async fn remove(&self, sha256: ContentHash) {
        if let Err(error) = self.remover.remove_unrecorded(&sha256).await {
            tracing::warn!(%error, blob = %sha256, "cannot remove rejected bytes: tried again later");
            self.remove_later(sha256);
        }
    }

    /// Removes the bytes of an upload that may be recorded at any moment, after the grace time.
    pub fn remove_later(&self, sha256: ContentHash) {
        let Ok(permit) = self.later.clone().try_acquire_owned() else { return };
        let this = self.clone();
        tokio::spawn(async move {
            loop {
                sleep(this.grace).await;
                match this.remover.remove_unrecorded(&sha256).await {
                    Ok(()) => break,
                    Err(error) => tracing::debug!(%error, blob = %sha256, "cannot remove yet"),
                }
            }
            drop(permit);
        });
    }
}
