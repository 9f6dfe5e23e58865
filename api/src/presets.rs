//! The presets as they are configured now.

use std::collections::BTreeMap;

use safelight_domain::{ContentHasher, Formats, Image, ImageFormat, Preset, Presets, Rendition};

use crate::http::problem::{Problem, ProblemCode};

/// The query parameter of a rendition's URL that names its version.
pub const VERSION: &str = "v";

/// Hex digits of a version.
const VERSION_DIGITS: usize = 16;

/// The configured presets by what distinguishes a current rendition from an old one.
pub struct CurrentPresets(BTreeMap<String, (String, Formats)>);

impl CurrentPresets {
    /// The presets of the configuration.
    pub fn new(presets: &Presets) -> Self {
        let current = |(name, preset): (&String, &Preset)| {
            (name.clone(), (preset.fingerprint(), preset.formats.clone()))
        };
        Self(presets.iter().map(current).collect())
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Whether there is a preset of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The image's rendition of a preset as configured now: that of the first of its formats that
    /// is there.
    pub fn rendition<'a>(&self, image: &'a Image, name: &str) -> Option<&'a Rendition> {
        if image.discarded {
            return None;
        }
        let (fingerprint, formats) = self.0.get(name)?;
        let made = image.renditions.iter();
        let made: Vec<&Rendition> =
            made.filter(|r| r.preset == name && r.fingerprint == *fingerprint).collect();
        let stored: Vec<ImageFormat> = made.iter().map(|r| r.format).collect();
        let base = formats.iter().find_map(|format| formats.outcome(*format, &stored))?;
        made.into_iter().find(|r| r.format == base)
    }

    /// The image's renditions of a preset as configured now, the base first.
    pub fn variants<'a>(
        &'a self,
        image: &'a Image,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Rendition> {
        let base = self.rendition(image, name);
        let others = image.renditions.iter().filter(move |made| {
            base.is_some_and(|base| {
                made.preset == name
                    && made.fingerprint == base.fingerprint
                    && made.format != base.format
            })
        });
        base.into_iter().chain(others)
    }

    /// Names the bytes of the image's renditions of a preset by 16 hex digits: others as soon as one of them
    /// differs, because the preset changed, or because a newer release or another worker made it again. `None`
    /// if there is none.
    pub fn version(&self, image: &Image, name: &str) -> Option<String> {
        let mut variants = self.variants(image, name).map(|made| made.sha256);
        let base = variants.next()?;
        let mut others: Vec<_> = variants.collect();
        others.sort_unstable();
        let mut hasher = ContentHasher::default();
        [base].iter().chain(&others).for_each(|hash| hasher.update(hash.as_bytes()));
        let mut digits = hasher.finish().to_string();
        digits.truncate(VERSION_DIGITS);
        Some(digits)
    }

    /// The URL of the image's rendition of a preset, whose bytes never change: see [`Self::version`].
    pub fn url(&self, image: &Image, name: &str) -> String {
        let path = format!("/images/{}/{name}", image.id);
        match self.version(image, name) {
            Some(version) => format!("{path}?{VERSION}={version}"),
            None => path,
        }
    }

    /// Whether clients choose among several formats of a preset.
    pub fn varies(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|(_, formats)| formats.len() > 1)
    }

    /// All current renditions of an image by preset.
    pub fn renditions<'a>(
        &'a self,
        image: &'a Image,
    ) -> impl Iterator<Item = (&'a str, &'a Rendition)> {
        self.names().filter_map(|name| self.rendition(image, name).map(|r| (name, r)))
    }

    /// There is no preset called `name`.
    pub fn not_found(&self, name: &str) -> Problem {
        let names: Vec<_> = self.names().collect();
        let name = name.escape_debug();
        Problem::new(ProblemCode::PresetNotFound, format!("There is no preset `{name}`."))
            .hint(format!("the presets are: {}", names.join(", ")))
            .with("presets", names)
    }
}
