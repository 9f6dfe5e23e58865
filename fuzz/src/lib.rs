//! Shared by the fuzz targets and the program that writes the initial corpus.

use safelight_imaging::{Fit, Focus, Limits, Preset, PresetFormat, Presets, Size};

/// Small enough that memory use stays constant and no valid picture takes a second.
pub const LIMITS: Limits = Limits {
    max_pixels: 1 << 20,
    max_side: 4096,
    max_frames: 20,
    max_animation_pixels: 2 << 20,
    max_memory: 64 << 20,
    heic: true,
};

/// Written into the EXIF position of every generated picture; no rendition may contain it.
pub const SECRET: &[u8] = b"where-this-was-taken";

/// The number of different [`presets`].
pub const CHOICES: u8 = 5 * 3 * 2 * 2 * 2;

/// One of [`CHOICES`] tiny presets, and a larger one, so that one rendition is made from the other. One byte
/// of the input selects it, because all presets for every picture would be slow.
pub fn presets(choice: u8) -> Presets {
    let mut remaining = usize::from(choice);
    let mut pick = |count: usize| {
        let picked = remaining % count;
        remaining /= count;
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
