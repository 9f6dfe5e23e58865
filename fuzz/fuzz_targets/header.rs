//! Inspects arbitrary bytes like an upload.

#![no_main]

use libfuzzer_sys::fuzz_target;
use safelight_fuzz::LIMITS;
use safelight_imaging::{ImageFormat, head_suffices, inspect};

fuzz_target!(|bytes: &[u8]| {
    let _ = head_suffices(&bytes[..bytes.len().min(ImageFormat::SNIFF_BYTES)]);
    match inspect(bytes, LIMITS) {
        Ok(facts) => {
            assert_eq!(Some(facts.format), ImageFormat::sniff(bytes));
            assert!(facts.width > 0 && facts.height > 0, "{facts:?}");
            assert!(facts.width.max(facts.height) <= LIMITS.max_side, "{facts:?}");
            assert!(
                u64::from(facts.width) * u64::from(facts.height) <= LIMITS.max_pixels,
                "{facts:?}"
            );
            assert!((1..=8).contains(&facts.orientation), "{facts:?}");
            if let Some(gps) = facts.gps {
                assert!((-90.0..=90.0).contains(&gps.latitude), "{gps:?}");
                assert!((-180.0..=180.0).contains(&gps.longitude), "{gps:?}");
            }
        }
        Err(failure) => assert!(!failure.code.is_retryable(), "{failure}"),
    }
});
