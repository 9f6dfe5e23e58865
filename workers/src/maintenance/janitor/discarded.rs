//! Removes the bytes of images whose upload was cancelled, unless another image has the same.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use safelight_removal::Remover;
use safelight_store::Deletions;

use crate::{
    maintenance::service::{Service, ServiceError},
    removal::Purger,
};

/// Images in one statement.
const BATCH: u32 = 100;

/// The query reads an index that is nearly always empty.
const PERIOD: Duration = Duration::from_secs(2);

/// Removes the bytes of images that were discarded.
pub(crate) struct DiscardedImages {
    deletions: Arc<dyn Deletions>,
    remover: Remover,
    purger: Purger,
}

impl DiscardedImages {
    pub fn new(deletions: Arc<dyn Deletions>, remover: Remover, purger: Purger) -> Self {
        Self { deletions, remover, purger }
    }

    /// Removes the bytes of all images that were discarded and that no worker can be writing for. Proxies are
    /// purged first, because the renditions' names are removed with the bytes. If a proxy does not confirm,
    /// nothing is removed, and the next run retries everything.
    pub async fn remove(&self) -> Result<(), ServiceError> {
        loop {
            let discarded = self.deletions.discarded(BATCH, self.purger.min_age()).await?;
            for image in &discarded {
                let presets = image.renditions.iter().map(|made| made.preset.as_str());
                self.purger.purge(image.id, presets).await?;
                self.remover.remove_image(image).await?;
                self.deletions.mark_removed(image.id).await?;
                tracing::info!(image = %image.id, "removed the bytes of a cancelled upload");
            }
            if discarded.len() < BATCH as usize {
                return Ok(());
            }
        }
    }
}

#[async_trait]
impl Service for DiscardedImages {
    fn name(&self) -> &'static str {
        "discarded_images"
    }

    fn action(&self) -> &'static str {
        "remove cancelled images"
    }

    fn period(&self) -> Option<Duration> {
        Some(PERIOD)
    }

    async fn run(&mut self) -> Result<(), ServiceError> {
        Ok(self.remove().await?)
    }
}
