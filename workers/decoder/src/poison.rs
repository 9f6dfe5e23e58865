//! Poison pictures for tests: a marker near the beginning of a picture names the fault to trigger in its
//! decoder.

use std::{
    fs::File,
    net::TcpStream,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

/// Precedes the name of the fault.
const MARKER: &[u8] = b"SAFELIGHT-FAIL:";

/// The marker is searched in the first bytes, which hold a comment.
const SEARCHED_BYTES: usize = 1024;

/// Whether a picture has taken over this decoder: then the next one is its victim.
static STAINED: AtomicBool = AtomicBool::new(false);

/// The argument of the fault `name`.
fn argument<'a>(fault: &'a [u8], name: &str) -> Option<&'a str> {
    let word = fault.strip_prefix(name.as_bytes())?;
    let end = word.iter().position(|byte| !byte.is_ascii_graphic()).unwrap_or(word.len());
    str::from_utf8(&word[..end]).ok()
}

/// Triggers the fault that a picture names, if any.
pub(super) fn trigger(picture: &[u8]) {
    if STAINED.load(Relaxed) {
        std::process::abort();
    }
    let head = &picture[..picture.len().min(SEARCHED_BYTES)];
    let Some(at) = head.windows(MARKER.len()).position(|window| window == MARKER) else { return };
    let fault = &head[at + MARKER.len()..];
    if fault.starts_with(b"crash") {
        std::process::abort();
    } else if fault.starts_with(b"stain") {
        STAINED.store(true, Relaxed);
    } else if fault.starts_with(b"hang") {
        thread::sleep(Duration::MAX);
    } else if fault.starts_with(b"spin") {
        loop {
            std::hint::spin_loop();
        }
    } else if fault.starts_with(b"bloat") {
        let mut hoard = Vec::new();
        loop {
            hoard.push(vec![1_u8; 1 << 20]);
        }
    } else if let Some(file) = argument(fault, "until:") {
        // Needs a decoder without the sandbox.
        while !Path::new(file).exists() {
            thread::sleep(Duration::from_millis(5));
        }
    } else if fault.starts_with(b"open") {
        drop(File::open("/etc/passwd"));
    } else if fault.starts_with(b"exec") {
        drop(Command::new("/bin/true").status());
    } else if let Some(address) = argument(fault, "connect:") {
        drop(TcpStream::connect(address));
    } else if let Some(process) = argument(fault, "signal:") {
        let process = process.parse().ok().and_then(Pid::from_raw);
        let _ = process.map(|process| kill_process(process, Signal::USR1));
    }
}
