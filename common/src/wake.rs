//! A bell inside one process: whoever makes work rings, the relay wakes.

use std::sync::Arc;

use tokio::sync::Notify;

/// Clones ring and hear the same bell. Rings while nobody listens are remembered as one.
#[derive(Clone, Default)]
pub struct Wake(Arc<Notify>);

impl Wake {
    /// Wakes the listener, now or at its next [`Wake::heard`].
    pub fn ring(&self) {
        self.0.notify_one();
    }

    /// Returns once the bell has rung since the last return.
    pub async fn heard(&self) {
        self.0.notified().await;
    }
}
