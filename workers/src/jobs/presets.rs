//! Which renditions an image lacks.

use safelight_domain::{Image, Presets};

/// The presets of which a rendition is missing in at least one format. Renditions belong to the blob, so
/// equal uploads share them.
pub(crate) fn missing_presets(presets: &Presets, image: &Image) -> Presets {
    let mut presets = presets.clone();
    presets.retain(|name, preset| {
        let fingerprint = preset.fingerprint();
        let made = image.renditions.iter();
        let made = made.filter(|r| r.preset == *name && r.fingerprint == fingerprint);
        !preset.formats.are_met_by(&made.map(|r| r.format).collect::<Vec<_>>())
    });
    presets
}
