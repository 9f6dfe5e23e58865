//! Presets: the parameters of renditions.

use std::{collections::BTreeMap, fmt, ops::Deref};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, SeqAccess, Visitor},
};

use super::{ContentHash, ImageFormat, Size, text_enum::text_enum};

text_enum! {
    /// The format that a preset asks for.
    "preset format" PresetFormat {
        /// JPEG for opaque stills, WebP for transparency or animation.
        Auto = "auto",
        /// Always JPEG: on white if transparent, and the first frame of an animation.
        Jpeg = "jpeg",
        /// Always WebP, animated if the picture is.
        Webp = "webp",
        /// Always AVIF: the first frame of an animation.
        Avif = "avif",
        /// Always PNG: the first frame of an animation.
        Png = "png",
    }
}

/// The formats of a preset: the base, and alternatives that clients may prefer. Written as one name or as a
/// list, which is never empty and has no duplicates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Formats(Vec<PresetFormat>);

impl Formats {
    /// The error says what is wrong with the list.
    pub fn new(formats: Vec<PresetFormat>) -> Result<Self, String> {
        if formats.is_empty() {
            return Err("the list of formats is empty".to_owned());
        }
        let twice = formats.iter().enumerate().find(|(at, format)| formats[..*at].contains(format));
        if let Some((_, format)) = twice {
            return Err(format!("the format `{format}` is in the list twice"));
        }
        let has = |format| formats.contains(&format);
        if has(PresetFormat::Auto) && has(PresetFormat::Jpeg) && has(PresetFormat::Webp) {
            return Err(
                "`auto` always becomes `jpeg` or `webp`; leave one of the three out".to_owned()
            );
        }
        Ok(Self(formats))
    }

    /// The format among those that were `made` from a picture that corresponds to `format`, which is one of
    /// these. `None` if it is not among them.
    pub fn outcome(&self, format: PresetFormat, made: &[ImageFormat]) -> Option<ImageFormat> {
        let one_of = |format: ImageFormat| made.contains(&format).then_some(format);
        match format {
            // A format that the list also contains was made in any case, so `auto` is the other one, unless
            // there is no other.
            PresetFormat::Auto if self.contains(&PresetFormat::Jpeg) => {
                one_of(ImageFormat::Webp).or_else(|| one_of(ImageFormat::Jpeg))
            }
            PresetFormat::Auto => one_of(ImageFormat::Jpeg).or_else(|| one_of(ImageFormat::Webp)),
            PresetFormat::Jpeg => one_of(ImageFormat::Jpeg),
            PresetFormat::Webp => one_of(ImageFormat::Webp),
            PresetFormat::Avif => one_of(ImageFormat::Avif),
            PresetFormat::Png => one_of(ImageFormat::Png),
        }
    }

    /// Whether each of these has a corresponding format among those that were `made` from a picture.
    pub fn are_met_by(&self, made: &[ImageFormat]) -> bool {
        self.iter().all(|format| self.outcome(*format, made).is_some())
    }
}

impl Deref for Formats {
    type Target = [PresetFormat];

    fn deref(&self) -> &[PresetFormat] {
        &self.0
    }
}

impl From<PresetFormat> for Formats {
    fn from(only: PresetFormat) -> Self {
        Self(vec![only])
    }
}

impl fmt::Display for Formats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(|format| format.as_str()).collect();
        f.write_str(&names.join(","))
    }
}

impl Serialize for Formats {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self[..] {
            [only] => only.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Formats {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FormatsVisitor)
    }
}

/// Reads a name or a list of names.
struct FormatsVisitor;

impl<'de> Visitor<'de> for FormatsVisitor {
    type Value = Formats;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a format or a list of formats")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Formats, E> {
        name.parse().map(|only: PresetFormat| only.into()).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Formats, A::Error> {
        let mut formats = Vec::new();
        while let Some(name) = list.next_element::<String>()? {
            formats.push(name.parse().map_err(A::Error::custom)?);
        }
        Formats::new(formats).map_err(A::Error::custom)
    }
}

text_enum! {
    /// How a picture fits into a preset's box.
    "fit" Fit {
        /// The whole picture fits into the box.
        Inside = "inside",
        /// The picture fills the box, and the rest is cropped.
        Cover = "cover",
    }
}

text_enum! {
    /// The part of a picture that cropping keeps.
    "focus" Focus {
        /// The center.
        Centre = "centre",
        /// The part that attracts attention: edges, strong colors, skin.
        Attention = "attention",
    }
}

/// The parameters of a rendition, which is always upright, in sRGB, and never enlarged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// The box, with sides of 1–16384.
    pub size: Size,
    /// How the picture fits into the box; default `inside`.
    #[serde(default = "Preset::default_fit")]
    pub fit: Fit,
    /// The part that is kept if `fit` crops; default `centre`.
    #[serde(default = "Preset::default_focus")]
    pub focus: Focus,
    /// The base format and its alternatives; default `auto`.
    #[serde(rename = "format", default = "Preset::default_formats")]
    pub formats: Formats,
    /// The quality of JPEG, lossy WebP and AVIF, 1–100; default 80.
    #[serde(default = "Preset::default_quality")]
    pub quality: u8,
    /// The strength of an unsharp mask after resizing, 0–100 percent; default 0.
    #[serde(default)]
    pub sharpen: u8,
    /// Whether EXIF's artist and copyright are copied; default no, unless the configuration's `keep_copyright`
    /// is set.
    #[serde(default)]
    pub keep_copyright: bool,
}

/// The configured presets by name.
pub type Presets = BTreeMap<String, Preset>;

impl Preset {
    /// A preset with defaults for everything but its box.
    pub fn new(size: Size) -> Self {
        Self {
            size,
            fit: Self::default_fit(),
            focus: Self::default_focus(),
            formats: Self::default_formats(),
            quality: Self::default_quality(),
            sharpen: 0,
            keep_copyright: false,
        }
    }

    fn default_fit() -> Fit {
        Fit::Inside
    }

    fn default_focus() -> Focus {
        Focus::Centre
    }

    fn default_formats() -> Formats {
        PresetFormat::Auto.into()
    }

    fn default_quality() -> u8 {
        80
    }

    /// Identifies the parameters by 12 hex digits, so that a changed preset makes new renditions in addition to
    /// the old ones. The leading number is the version of the imaging code: increase it when the same
    /// parameters give different pictures.
    pub fn fingerprint(&self) -> String {
        let Self { size, fit, focus, formats, quality, sharpen, keep_copyright } = self;
        let recipe = format!(
            "2 size={size} fit={fit} focus={focus} format={formats} quality={quality} \
             sharpen={sharpen} keep_copyright={keep_copyright}"
        );
        let mut digits = ContentHash::of(recipe.as_bytes()).to_string();
        digits.truncate(12);
        digits
    }

    /// What is wrong with the parameters, if anything.
    pub fn problem(&self) -> Option<&'static str> {
        let sides = [self.size.width, self.size.height];
        if sides.iter().any(|side| !(1..=Size::LONGEST).contains(side)) {
            return Some("size must be 1 to 16384");
        }
        if !(1..=100).contains(&self.quality) {
            return Some("quality must be 1 to 100");
        }
        if self.sharpen > 100 {
            return Some("sharpen must be 0 to 100");
        }
        if self.focus == Focus::Attention && self.fit == Fit::Inside {
            return Some("focus = \"attention\" needs fit = \"cover\", because nothing else crops");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_covers_every_parameter() {
        let base = Preset::new(Size::square(256));
        assert_eq!(base.fingerprint(), base.clone().fingerprint());
        for other in [
            Preset { size: Size { width: 256, height: 255 }, ..base.clone() },
            Preset { fit: Fit::Cover, ..base.clone() },
            Preset { focus: Focus::Attention, ..base.clone() },
            Preset { formats: PresetFormat::Webp.into(), ..base.clone() },
            Preset { formats: formats("[\"auto\",\"webp\"]"), ..base.clone() },
            Preset { quality: 81, ..base.clone() },
            Preset { sharpen: 1, ..base.clone() },
            Preset { keep_copyright: true, ..base.clone() },
        ] {
            assert_ne!(base.fingerprint(), other.fingerprint(), "{other:?}");
        }
    }

    /// Stored renditions are found by their fingerprint.
    #[test]
    fn fingerprint_of_a_single_format_is_stable() {
        let recipe = "2 size=256x256 fit=inside focus=centre format=auto quality=80 sharpen=0 \
                      keep_copyright=false";
        let expected = ContentHash::of(recipe.as_bytes()).to_string();
        assert!(expected.starts_with(&Preset::new(Size::square(256)).fingerprint()));
    }

    fn formats(json: &str) -> Formats {
        serde_json::from_str(json).expect("formats")
    }

    #[test]
    fn format_is_a_name_or_a_list_of_names() {
        for text in ["\"webp\"", "[\"auto\",\"webp\",\"avif\"]"] {
            assert_eq!(serde_json::to_string(&formats(text)).expect("text"), text);
        }
        assert_eq!(formats("[\"webp\"]"), PresetFormat::Webp.into());
        for (wrong, words) in [
            ("\"gif\"", "unknown preset format `gif`"),
            ("[\"gif\"]", "unknown preset format `gif`"),
            ("[]", "is empty"),
            ("[\"webp\",\"avif\",\"webp\"]", "`webp` is in the list twice"),
            ("[\"auto\",\"webp\",\"jpeg\"]", "leave one"),
            ("7", "a format or a list of formats"),
        ] {
            let error = serde_json::from_str::<Formats>(wrong).expect_err(wrong);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn result_of_auto_is_derived_from_the_formats_made() {
        use ImageFormat::{Avif, Jpeg, Webp};
        for (list, made, base) in [
            ("\"auto\"", &[Webp][..], Some(Webp)),
            ("[\"auto\",\"webp\"]", &[Jpeg, Webp], Some(Jpeg)),
            ("[\"auto\",\"webp\"]", &[Webp], Some(Webp)),
            ("[\"auto\",\"jpeg\"]", &[Jpeg, Webp], Some(Webp)),
            ("[\"auto\",\"jpeg\"]", &[Jpeg], Some(Jpeg)),
            ("[\"avif\",\"auto\"]", &[Avif, Jpeg], Some(Avif)),
            ("[\"avif\",\"auto\"]", &[Jpeg], None),
        ] {
            let list = formats(list);
            assert_eq!(list.outcome(list[0], made), base, "{list} of {made:?}");
            assert_eq!(list.are_met_by(made), base.is_some(), "{list} of {made:?}");
        }
    }

    #[test]
    fn size_is_a_number_or_a_pair() {
        for (text, size) in [("256", Size::square(256)), ("[1200,630]", wide())] {
            assert_eq!(serde_json::from_str::<Size>(text).expect("a size"), size);
            assert_eq!(serde_json::to_string(&size).expect("text"), text);
        }
        for wrong in ["\"256\"", "[1]", "[1,2,3]", "-1", "{}"] {
            let error = serde_json::from_str::<Size>(wrong).expect_err(wrong);
            assert!(error.to_string().contains("[width, height]"), "{error}");
        }
    }

    fn wide() -> Size {
        Size { width: 1200, height: 630 }
    }

    #[test]
    fn invalid_parameters_are_rejected() {
        let base = Preset::new(wide());
        assert_eq!(base.problem(), None);
        for (wrong, word) in [
            (Preset { size: Size::square(0), ..base.clone() }, "size"),
            (Preset { size: Size { width: 9, height: 16_385 }, ..base.clone() }, "size"),
            (Preset { quality: 0, ..base.clone() }, "quality"),
            (Preset { sharpen: 101, ..base.clone() }, "sharpen"),
            (Preset { focus: Focus::Attention, ..base.clone() }, "focus"),
        ] {
            assert!(wrong.problem().is_some_and(|text| text.starts_with(word)), "{wrong:?}");
        }
        assert_eq!(Preset { focus: Focus::Attention, fit: Fit::Cover, ..base }.problem(), None);
    }
}
