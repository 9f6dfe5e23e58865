//! Arbitrary bytes, made into renditions. The last byte chooses the presets; the others are the
//! picture.

#![no_main]

use std::io::stderr;

use libfuzzer_sys::fuzz_target;
use safelight_domain::{ImageFormat, Placeholder, Preset, Presets};
use safelight_fuzz::{LIMITS, SECRET, presets};
use safelight_imaging::{Rendered, Renderer, inspect};
use tracing::Level;

fuzz_target!(
    // A bug's cause stands only in the log.
    init: tracing_subscriber::fmt().with_max_level(Level::ERROR).with_writer(stderr).init(),
    |bytes: &[u8]| {
        let Some((choice, picture)) = bytes.split_last() else { return };
        let presets = presets(*choice);
        // A new one each time: a finding must not depend on the pictures before it.
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
                if let Err(refused) = facts {
                    assert_eq!(failure, refused);
                }
            }
        }
    }
);

/// Holds a rendition against its preset, and makes a rendition of it in turn: what we write we can
/// read.
fn check(one: &Rendered, presets: &Presets, longest: u32, renderer: &mut Renderer) {
    let Rendered { rendition, data } = one;
    let preset = &presets[&rendition.preset];
    let (width, height) = (rendition.width, rendition.height);
    assert!(width <= preset.size.width && height <= preset.size.height, "{rendition:?}");
    assert!(width > 0 && height > 0 && width.max(height) <= longest, "{rendition:?}");
    assert_eq!(rendition.bytes, data.len() as u64);
    assert_eq!(ImageFormat::sniff(data), Some(rendition.format));

    let facts = inspect(data, LIMITS).expect("a rendition has a sound header");
    assert_eq!((facts.format, facts.width, facts.height), (rendition.format, width, height));
    assert_eq!((facts.orientation, facts.taken_at, facts.gps), (1, None, None));
    // Whoever puts it into the copyright, which may be kept, has said it.
    let tells = data.windows(SECRET.len()).any(|window| window == SECRET);
    assert!(preset.keep_copyright || !tells, "{rendition:?} tells a secret");

    let again = Presets::from([("again".to_owned(), Preset::new(preset.size))]);
    let again = renderer.render(data, &again, LIMITS, &|| false).expect("a sound picture");
    let [again] = &again.renditions[..] else { panic!("one preset, one rendition") };
    assert_eq!((again.rendition.width, again.rendition.height), (width, height));
}
