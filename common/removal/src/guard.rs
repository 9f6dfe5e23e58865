//! Whether the database knows enough to tell garbage.

use std::{sync::Arc, time::Duration};

use safelight_blobs::Blobs;
use safelight_store::Installations;

use super::error::RemovalError;

/// Notices that the database is an older copy of itself, or a promoted standby that lacks the last transactions. What
/// was stored meanwhile looks like garbage to such a database, and is kept for a grace time, so that a person can
/// act.
#[derive(Clone)]
pub struct InstallationGuard {
    installations: Arc<dyn Installations>,
    blobs: Blobs,
    grace: Duration,
}

impl InstallationGuard {
    /// `grace` is how long nothing unknown is removed after it was noticed.
    pub fn new(installations: Arc<dyn Installations>, blobs: Blobs, grace: Duration) -> Self {
        Self { installations, blobs, grace }
    }

    /// Whether bytes may be removed for the reason alone that the database does not know them. Fails if the store is
    /// not this installation's.
    pub async fn may_remove_unknown(&self) -> Result<bool, RemovalError> {
        self.blobs.confirm().await?;
        // The store's first: the database's grows before it is written there.
        let stored = self.blobs.generation().await?;
        let known = self.installations.installation().await?;
        if stored <= known.generation && !known.is_other_lineage {
            return Ok(!known.keeps_unknown);
        }
        self.keep_unknown("the database is an older copy, or was promoted").await?;
        self.installations.advance_generation(stored).await?;
        Ok(false)
    }

    /// Keeps everything that the database does not know, from now on for the grace time.
    pub async fn keep_unknown(&self, why: &str) -> Result<(), RemovalError> {
        let until = chrono::Utc::now() + self.grace;
        tracing::warn!(why, %until, "nothing is removed for the reason alone that the database does not know it");
        Ok(self.installations.keep_unknown(self.grace).await?)
    }

    /// Makes the database newer than every copy of it, and the store know that.
    pub async fn advance(&self) -> Result<(), RemovalError> {
        let generation = self.installations.advance_generation(0).await?;
        Ok(self.blobs.raise_generation(generation).await?)
    }
}
