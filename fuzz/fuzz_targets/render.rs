//! Renders arbitrary bytes. The last byte selects the presets; the others are the picture.

#![no_main]

use std::io::stderr;

use libfuzzer_sys::fuzz_target;
use safelight_fuzz::{LIMITS, SECRET, presets};
use safelight_imaging::{
    ImageFormat, Placeholder, Preset, Presets, Rendered, Renderer, inspect,
};
use tracing::Level;

fuzz_target!(
    // The cause of a bug is only in the log.
    init: tracing_subscriber::fmt().with_max_level(Level::ERROR).with_writer(stderr).init(),
    |bytes: &[u8]| {
        let Some((choice, picture)) = bytes.split_last() else { return };
        let presets = presets(*choice);
        // A new one for each input, so that findings do not depend on earlier inputs.
        let mut renderer = Renderer::new().expect("codecs");
        let rendered = renderer.render(picture, &presets, LIMITS, &|| false);
        let facts = inspect(picture, LIMITS);
        match rendered {
            Ok(made) => {
                let facts = facts.expect("what can be rendered can be inspected");
                let lengths = Placeholder::THUMBHASH_BYTES;
                assert!(lengths.contains(&made.placeholder.thumbhash.len()));
                assert_eq!(made.renditions.len(), presets.len());
                for one in &made.renditions {
                    check(one, &presets, facts.width.max(facts.height), &mut renderer);
                }
            }
            Err(failure) => {
                assert!(!failure.code.is_retryable(), "{failure}");
                if let Err(inspection) = facts {
                    assert_eq!(failure, inspection);
                }
            }
        }
    }
);

/// Checks a rendition against its preset, and renders it again: the product must be able to read what it
/// writes.
fn check(one: &Rendered, presets: &Presets, longest: u32, renderer: &mut Renderer) {
    let Rendered { rendition, data } = one;
    let preset = &presets[&rendition.preset];
    let (width, height) = (rendition.width, rendition.height);
    assert!(width <= preset.size.width && height <= preset.size.height, "{rendition:?}");
    assert!(width > 0 && height > 0 && width.max(height) <= longest, "{rendition:?}");
    assert_eq!(rendition.bytes, data.len() as u64);
    assert_eq!(ImageFormat::sniff(data), Some(rendition.format));

    let facts = inspect(data, LIMITS).expect("a rendition has a valid header");
    assert_eq!((facts.format, facts.width, facts.height), (rendition.format, width, height));
    assert_eq!((facts.orientation, facts.taken_at, facts.gps), (1, None, None));
    // The fuzzer may copy it into the copyright text, which a preset can keep.
    let leaks = data.windows(SECRET.len()).any(|window| window == SECRET);
    assert!(preset.keep_copyright || !leaks, "{rendition:?} leaks the position");

    let again = Presets::from([("again".to_owned(), Preset::new(preset.size))]);
    let again = renderer.render(data, &again, LIMITS, &|| false).expect("a valid picture");
    let [again] = &again.renditions[..] else { panic!("one preset, one rendition") };
    assert_eq!((again.rendition.width, again.rendition.height), (width, height));
}
