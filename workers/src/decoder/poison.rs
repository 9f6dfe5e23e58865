//! Poison on demand, for tests: a picture that says near its beginning how it harms its decoder.

use std::{thread, time::Duration};

/// What stands before the name of the harm.
const MARKER: &[u8] = b"SAFELIGHT-FAIL:";

/// The marker is looked for in this many first bytes, where a comment stands.
const HEAD: usize = 1024;

/// Does the harm that a picture asks for, if it does.
pub(super) fn take(picture: &[u8]) {
    let head = &picture[..picture.len().min(HEAD)];
    let Some(at) = head.windows(MARKER.len()).position(|window| window == MARKER) else { return };
    let harm = &head[at + MARKER.len()..];
    if harm.starts_with(b"crash") {
        std::process::abort();
    } else if harm.starts_with(b"hang") {
        thread::sleep(Duration::MAX);
    } else if harm.starts_with(b"spin") {
        loop {
            std::hint::spin_loop();
        }
    } else if harm.starts_with(b"bloat") {
        let mut hoard = Vec::new();
        loop {
            hoard.push(vec![1_u8; 1 << 20]);
        }
    }
}
