//! The database being away: no deliveries are taken meanwhile, so that neither messages nor
//! attempts are burnt.

use safelight_common::{
    retry::Reconnect,
    store::{Store, StoreError},
};
use tokio::sync::watch;

/// Whether the database is in reach, as far as this worker knows.
pub(super) struct Outage(watch::Sender<bool>);

impl Default for Outage {
    fn default() -> Self {
        Self(watch::Sender::new(true))
    }
}

impl Outage {
    /// Notes that the database was found away.
    pub fn report(&self, error: &StoreError) {
        self.0.send_if_modified(|reachable| {
            if *reachable {
                tracing::warn!(
                    error = error as &dyn std::error::Error,
                    "the database is away: no jobs are taken until it is back"
                );
            }
            std::mem::replace(reachable, false)
        });
    }

    /// Returns when the database is in reach, at once if it is.
    pub async fn over(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|reachable| *reachable).await;
    }

    /// Looks for the database whenever it is away. Never ends.
    pub async fn watch(&self, store: &dyn Store) {
        let mut states = self.0.subscribe();
        let mut reconnect = Reconnect::default();
        loop {
            let _ = states.wait_for(|reachable| !*reachable).await;
            tokio::time::sleep(reconnect.next_delay()).await;
            if store.ping().await.is_ok() {
                reconnect.reset();
                tracing::info!("the database is back");
                self.0.send_replace(true);
            }
        }
    }
}
