//! Presets: the recipes for renditions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ContentHash, text_enum::text_enum};

text_enum! {
    /// The format that a preset asks for.
    "preset format" PresetFormat {
        /// JPEG for opaque pictures, WebP where there is transparency.
        Auto = "auto",
        /// Always JPEG; transparency is laid on white.
        Jpeg = "jpeg",
        /// Always WebP.
        Webp = "webp",
        /// Always PNG.
        Png = "png",
    }
}

/// One recipe: a picture that fits a square of `size`, upright, never enlarged, without metadata.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// The longest side at most, in pixels, 1–16384.
    pub size: u32,
    /// The format; `auto` unless said.
    #[serde(default = "Preset::default_format")]
    pub format: PresetFormat,
    /// JPEG and lossy WebP quality, 1–100; 80 unless said.
    #[serde(default = "Preset::default_quality")]
    pub quality: u8,
}

/// The configured presets by name.
pub type Presets = BTreeMap<String, Preset>;

impl Preset {
    fn default_format() -> PresetFormat {
        PresetFormat::Auto
    }

    fn default_quality() -> u8 {
        80
    }

    /// Names this recipe: 12 hex digits over all its parameters, so that a changed preset makes
    /// new renditions beside the old. The leading number is the imaging code's own version: raise
    /// it when the same parameters begin to give other pictures.
    pub fn fingerprint(&self) -> String {
        let recipe =
            format!("1 size={} format={} quality={}", self.size, self.format, self.quality);
        let mut digits = ContentHash::of(recipe.as_bytes()).to_string();
        digits.truncate(12);
        digits
    }

    /// What is wrong with the recipe, if anything.
    pub fn problem(&self) -> Option<&'static str> {
        match self {
            Self { size: 0 | 16_385.., .. } => Some("size must be 1 to 16384"),
            Self { quality: 0 | 101.., .. } => Some("quality must be 1 to 100"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_is_in_the_fingerprint() {
        let base = Preset { size: 256, format: PresetFormat::Auto, quality: 80 };
        assert_eq!(base.fingerprint(), base.clone().fingerprint());
        for other in [
            Preset { size: 257, ..base.clone() },
            Preset { format: PresetFormat::Webp, ..base.clone() },
            Preset { quality: 81, ..base.clone() },
        ] {
            assert_ne!(base.fingerprint(), other.fingerprint(), "{other:?}");
        }
    }
}
