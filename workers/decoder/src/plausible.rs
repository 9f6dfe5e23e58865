//! What a decoder can answer. It reads untrusted data, and one that a picture has taken over answers what it likes:
//! nothing of it is allocated, stored or shown before it was checked here.

use std::io;

use safelight_domain::{
    ContentHash, ErrorCode, Failure, Gps, ImageFacts, ImageFormat, Preset, Presets, Rendition,
};
use safelight_imaging::{Limits, Rendered};

/// The maximum length of a rendition is this plus four bytes for each of its pixels.
const OVERHEAD_BYTES: u64 = 1 << 20;

/// The codes with which imaging code fails. All others speak of what a decoder cannot know, such as the state of
/// the store: an attempt that fails because of that does not count.
const CODES: [ErrorCode; 9] = [
    ErrorCode::NotAnImage,
    ErrorCode::UnsupportedFormat,
    ErrorCode::CorruptImage,
    ErrorCode::TooManyPixels,
    ErrorCode::SideTooLong,
    ErrorCode::TooManyFrames,
    ErrorCode::TooMuchMemory,
    ErrorCode::DecoderOutOfMemory,
    ErrorCode::WorkerPanicked,
];

/// A failure that can be stored and shown.
pub(super) fn failure(failure: Failure) -> io::Result<Failure> {
    if !CODES.contains(&failure.code) {
        return Err(invalid("a failure that no decoder can have"));
    }
    Ok(failure.cleaned())
}

/// The facts of a picture within the limits.
pub(super) fn facts(facts: ImageFacts, limits: Limits) -> io::Result<ImageFacts> {
    let is_on_earth = |at: Gps| at.latitude.abs() <= 90.0 && at.longitude.abs() <= 180.0;
    let pixels = area(facts.width, facts.height);
    let is_plausible = (1..=limits.max_pixels).contains(&pixels)
        && facts.width.max(facts.height) <= limits.max_side
        && (1..=8).contains(&facts.orientation)
        && facts.gps.is_none_or(is_on_earth);
    if is_plausible { Ok(facts) } else { Err(invalid("the facts of no picture")) }
}

/// The bytes of all renditions together, if each is one that was requested and has a possible size.
pub(super) fn total_bytes(
    renditions: &[Rendition],
    presets: &Presets,
    limits: Limits,
) -> io::Result<usize> {
    for (name, preset) in presets {
        let made = renditions.iter().filter(|made| made.preset == *name).map(|made| made.format);
        let mut made: Vec<ImageFormat> = made.collect();
        let is_met = preset.formats.are_met_by(&made);
        made.sort_unstable();
        let is_twice = made.windows(2).any(|pair| pair[0] == pair[1]);
        if !is_met || is_twice || made.len() > preset.formats.len() {
            return Err(invalid("the renditions do not match the request"));
        }
    }
    let mut total = 0_u64;
    for rendition in renditions {
        let preset = presets
            .get(&rendition.preset)
            .filter(|preset| preset.fingerprint() == rendition.fingerprint)
            .ok_or_else(|| invalid("a rendition that was not requested"))?;
        let (width, height) = (rendition.width, rendition.height);
        if area(width, height) == 0 || width > preset.size.width || height > preset.size.height {
            return Err(invalid("a rendition that exceeds its box"));
        }
        bounded(rendition.bytes, maximum_bytes(rendition.format, preset, limits))?;
        total = total.saturating_add(rendition.bytes);
    }
    // All of them were in the decoder's memory.
    bounded(total, limits.max_memory)
}

/// Checks the bytes of a rendition: nobody reads bytes under a hash that they do not have.
pub(super) fn data(rendered: &Rendered) -> io::Result<()> {
    let Rendered { rendition, data } = rendered;
    let is_format = ImageFormat::sniff(data) == Some(rendition.format);
    if !is_format || ContentHash::of(data) != rendition.sha256 {
        return Err(invalid("a rendition that is not what it is said to be"));
    }
    Ok(())
}

/// No rendition has more pixels than its picture, and only WebP is animated.
fn maximum_bytes(format: ImageFormat, preset: &Preset, limits: Limits) -> u64 {
    let in_box = area(preset.size.width, preset.size.height);
    let still = in_box.min(limits.max_pixels);
    let pixels = match format {
        ImageFormat::Webp => {
            let animated = in_box.saturating_mul(limits.max_frames.into());
            animated.min(limits.max_animation_pixels).max(still)
        }
        _ => still,
    };
    pixels.saturating_mul(4).saturating_add(OVERHEAD_BYTES)
}

fn area(width: u32, height: u32) -> u64 {
    u64::from(width) * u64::from(height)
}

/// A length that was announced, if it is at most `maximum`.
pub(super) fn bounded(length: u64, maximum: u64) -> io::Result<usize> {
    usize::try_from(length)
        .ok()
        .filter(|_| length <= maximum)
        .ok_or_else(|| invalid("a length exceeds its limit"))
}

pub(super) fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use safelight_domain::Size;

    use super::*;

    /// The defaults.
    const LIMITS: Limits = Limits {
        max_pixels: 100_000_000,
        max_side: 65_535,
        max_frames: 1000,
        max_animation_pixels: 400_000_000,
        max_memory: 1 << 30,
        heic: true,
    };

    fn rendition(preset: &str, size: u32, format: ImageFormat, bytes: u64) -> Rendition {
        Rendition {
            preset: preset.to_owned(),
            fingerprint: Preset::new(Size::square(size)).fingerprint(),
            format,
            width: size,
            height: size,
            bytes,
            sha256: ContentHash::of(b"x"),
            made_at: None,
        }
    }

    /// The presets `a`, `b` and `c` of 1280 pixels.
    fn presets() -> Presets {
        let preset = |name: &str| (name.to_owned(), Preset::new(Size::square(1280)));
        ["a", "b", "c"].map(preset).into()
    }

    fn total(format: ImageFormat, bytes: u64) -> io::Result<usize> {
        let renditions = ["a", "b", "c"].map(|name| rendition(name, 1280, format, bytes));
        total_bytes(&renditions, &presets(), LIMITS)
    }

    #[test]
    fn renditions_are_bounded_by_the_pixels_of_their_picture_and_the_memory_of_the_decoder() {
        let still = 1280 * 1280 * 4 + OVERHEAD_BYTES;
        assert_eq!(total(ImageFormat::Jpeg, still).expect("possible") as u64, 3 * still);
        assert!(total(ImageFormat::Jpeg, still + 1).is_err());
        // Frames times the box would allow 6.5 GB for each.
        assert_eq!(
            maximum_bytes(ImageFormat::Webp, &Preset::new(Size::square(1280)), LIMITS),
            1_600_000_000 + OVERHEAD_BYTES
        );
        assert!(total(ImageFormat::Webp, (1 << 30) / 3).is_ok());
        assert!(total(ImageFormat::Webp, (1 << 30) / 3 + 1).is_err());
        assert!(total(ImageFormat::Webp, u64::MAX).is_err());
    }

    #[test]
    fn rendition_beyond_its_box_is_rejected() {
        for (width, height) in [(1281, 1), (1, 1281), (0, 5), (5, 0)] {
            let mut renditions =
                ["a", "b", "c"].map(|name| rendition(name, 1280, ImageFormat::Jpeg, 9));
            (renditions[1].width, renditions[1].height) = (width, height);
            assert!(total_bytes(&renditions, &presets(), LIMITS).is_err(), "{width} × {height}");
        }
    }

    #[test]
    fn decoder_cannot_claim_failures_that_do_not_count() {
        for code in ErrorCode::ALL {
            let is_taken = failure(Failure::new(*code, "x")).is_ok();
            assert_eq!(is_taken, CODES.contains(code), "{code}");
            assert!(!(is_taken && code.is_outage()), "{code}");
        }
    }

    #[test]
    fn facts_beyond_the_limits_are_rejected() {
        let good = ImageFacts {
            format: ImageFormat::Jpeg,
            width: 10_000,
            height: 10_000,
            orientation: 8,
            taken_at: None,
            gps: Some(Gps { latitude: -90.0, longitude: 180.0 }),
        };
        assert_eq!(facts(good.clone(), LIMITS).expect("possible"), good);
        let gps = Some(Gps { latitude: 90.1, longitude: 0.0 });
        for bad in [
            ImageFacts { width: 0, ..good.clone() },
            ImageFacts { width: 10_001, ..good.clone() },
            ImageFacts { width: 70_000, height: 1, ..good.clone() },
            ImageFacts { orientation: 0, ..good.clone() },
            ImageFacts { orientation: 9, ..good.clone() },
            ImageFacts { gps, ..good.clone() },
        ] {
            assert!(facts(bad.clone(), LIMITS).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bytes_must_have_their_hash_and_their_format() {
        let png = b"\x89PNG\r\n\x1a\n and more";
        let mut good = rendition("a", 1280, ImageFormat::Png, png.len() as u64);
        good.sha256 = ContentHash::of(png);
        let check = |rendition: &Rendition, bytes: &'static [u8]| {
            data(&Rendered { rendition: rendition.clone(), data: bytes.into() }).is_ok()
        };
        assert!(check(&good, png));
        assert!(!check(&good, b"\x89PNG\r\n\x1a\n and less"));
        assert!(!check(&Rendition { format: ImageFormat::Jpeg, ..good }, png));
    }
}
