//! What the fuzz targets and the maker of their first pictures share.

use safelight_domain::{Fit, Focus, Preset, PresetFormat, Presets, Size};
use safelight_imaging::Limits;

/// Small enough that memory stays flat and nothing sound takes a second.
pub const LIMITS: Limits = Limits {
    max_pixels: 1 << 20,
    max_side: 4096,
    max_frames: 20,
    max_animation_pixels: 2 << 20,
    max_memory: 64 << 20,
};

/// Stands in every made picture's EXIF position, and may stand in no rendition.
pub const SECRET: &[u8] = b"where-this-was-taken";

/// How many different [`presets`] there are.
pub const CHOICES: u8 = 5 * 3 * 2 * 2 * 2;

/// One of [`CHOICES`] tiny presets, and a larger one, so that one is made of the other. The fuzzer
/// chooses by a byte, since all of them for every picture would be slow.
pub fn presets(choice: u8) -> Presets {
    let mut left = usize::from(choice);
    let mut pick = |of: usize| {
        let picked = left % of;
        left /= of;
        picked
    };
    let format = PresetFormat::ALL[pick(PresetFormat::ALL.len())];
    let (fit, focus) =
        [(Fit::Inside, Focus::Centre), (Fit::Cover, Focus::Centre), (Fit::Cover, Focus::Attention)]
            [pick(3)];
    let sharpen = [0, 60][pick(2)];
    let size = [Size::square(20), Size { width: 24, height: 9 }][pick(2)];
    let keep_copyright = pick(2) == 1;
    let tiny = Preset { formats: format.into(), fit, focus, sharpen, keep_copyright, ..Preset::new(size) };
    [("tiny", tiny), ("larger", Preset::new(Size::square(48)))]
        .map(|(name, preset)| (name.to_owned(), preset))
        .into()
}
