//! Which renditions an image lacks.

use safelight_domain::{Image, Presets};

/// The presets of which there is not a rendition in each of their formats yet. Renditions belong to the
/// blob: an equal upload finds those of the first.
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
