//! Renders one picture after another: the outcome of the second one must not depend on the first one. The last
//! two bytes say where the second one begins.

#![no_main]

use std::io::stderr;

use libfuzzer_sys::fuzz_target;
use safelight_fuzz::{LIMITS, presets};
use safelight_imaging::{Failure, Renderer};
use tracing::Level;

fuzz_target!(
    // The cause of a bug is only in the log.
    init: tracing_subscriber::fmt().with_max_level(Level::ERROR).with_writer(stderr).init(),
    |bytes: &[u8]| {
        let Some((pictures, at)) = bytes.split_last_chunk() else { return };
        let at = usize::from(u16::from_le_bytes(*at)).min(pictures.len());
        let (first, second) = pictures.split_at(at);
        let alone = outcome(&mut Renderer::new().expect("codecs"), second);
        let mut renderer = Renderer::new().expect("codecs");
        let _ = outcome(&mut renderer, first);
        assert_eq!(outcome(&mut renderer, second), alone);
    }
);

/// The bytes of all renditions, or the failure.
fn outcome(renderer: &mut Renderer, picture: &[u8]) -> Result<Vec<Vec<u8>>, Failure> {
    let made = renderer.render(picture, &presets(0), LIMITS, &|| false)?;
    Ok(made.renditions.iter().map(|one| one.data.to_vec()).collect())
}
