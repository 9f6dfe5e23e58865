//! Images whose upload was cancelled: their bytes go, unless another image has the same.

use safelight_services::Services;

use super::{RemovalError, purge, remove_bytes};

/// Images in one statement.
const BATCH: u32 = 100;

/// Removes the bytes of all images that were discarded and that no worker can be writing for. Proxies
/// come first, since the renditions' names go with the bytes; while one of them does not confirm,
/// nothing is removed, and all is tried again with the next round.
pub(crate) async fn remove(services: Services) -> Result<(), RemovalError> {
    loop {
        let discarded = services.store.discarded(BATCH, purge::age(&services.config)).await?;
        for image in &discarded {
            let presets = image.renditions.iter().map(|made| made.preset.as_str());
            purge::everywhere(&services.config, image.id, presets).await?;
            remove_bytes(&services, image).await?;
            services.store.mark_removed(image.id).await?;
            tracing::info!(image = %image.id, "removed the bytes of a cancelled upload");
        }
        if discarded.len() < BATCH as usize {
            return Ok(());
        }
    }
}
