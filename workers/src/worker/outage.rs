//! A part being away that every job needs: no deliveries are taken meanwhile, so that neither
//! messages nor attempts are burnt.

use std::error::Error;

use futures::future::BoxFuture;
use safelight_domain::retry::Reconnect;
use tokio::sync::watch;

/// Whether a part is in reach, as far as this worker knows.
pub(super) struct Outage {
    part: &'static str,
    reachable: watch::Sender<bool>,
}

impl Outage {
    /// No outage yet of `part`, as in "the … is away".
    pub fn of(part: &'static str) -> Self {
        Self { part, reachable: watch::Sender::new(true) }
    }

    /// Notes that the part was found away.
    pub fn report(&self, error: &(dyn Error + 'static)) {
        self.reachable.send_if_modified(|reachable| {
            if *reachable {
                tracing::warn!(
                    error,
                    "the {} is away: no jobs are taken until it is back",
                    self.part
                );
            }
            std::mem::replace(reachable, false)
        });
    }

    /// Returns when the part is in reach, at once if it is.
    pub async fn over(&self) {
        // The sender lives as long as `self`.
        let _ = self.reachable.subscribe().wait_for(|reachable| *reachable).await;
    }

    /// Looks for the part, by asking `is_back`, whenever it is away. Never ends.
    pub async fn watch(&self, is_back: impl Fn() -> BoxFuture<'static, bool>) {
        let mut states = self.reachable.subscribe();
        let mut reconnect = Reconnect::default();
        loop {
            let _ = states.wait_for(|reachable| !*reachable).await;
            tokio::time::sleep(reconnect.next_delay()).await;
            if is_back().await {
                reconnect.reset();
                tracing::info!("the {} is back", self.part);
                self.reachable.send_replace(true);
            }
        }
    }
}
