//! A signal inside one process: jobs were put into the outbox, and the relay need not wait for its next poll.

use std::sync::Arc;

use tokio::sync::Notify;

/// Clones share one signal. Notifications without a waiting task are remembered as one.
#[derive(Clone, Default)]
pub struct OutboxSignal(Arc<Notify>);

impl OutboxSignal {
    /// Ends the relay's wait, now or at its next [`OutboxSignal::notified`].
    pub fn notify(&self) {
        self.0.notify_one();
    }

    /// Returns once there was a notification since the last return.
    pub async fn notified(&self) {
        self.0.notified().await;
    }
}
