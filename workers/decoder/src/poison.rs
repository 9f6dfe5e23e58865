//! Poison on demand, for tests: a picture that says near its beginning how it harms its decoder.

use std::{fs::File, net::TcpStream, process::Command, thread, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

/// What stands before the name of the harm.
const MARKER: &[u8] = b"SAFELIGHT-FAIL:";

/// The marker is looked for in this many first bytes, where a comment stands.
const HEAD: usize = 1024;

/// The word that follows the name of the harm.
fn told<'a>(harm: &'a [u8], name: &str) -> Option<&'a str> {
    let word = harm.strip_prefix(name.as_bytes())?;
    let end = word.iter().position(|byte| !byte.is_ascii_graphic()).unwrap_or(word.len());
    str::from_utf8(&word[..end]).ok()
}

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
    } else if harm.starts_with(b"open") {
        drop(File::open("/etc/passwd"));
    } else if harm.starts_with(b"exec") {
        drop(Command::new("/bin/true").status());
    } else if let Some(address) = told(harm, "connect:") {
        drop(TcpStream::connect(address));
    } else if let Some(process) = told(harm, "signal:") {
        let process = process.parse().ok().and_then(Pid::from_raw);
        let _ = process.map(|process| kill_process(process, Signal::USR1));
    }
}
