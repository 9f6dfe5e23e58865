//! The decoder's side: a process that knows codecs, its pipes, and nothing else. No configuration,
//! no runtime, no secrets in its environment.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    thread,
};

use nix::sys::signal::{SigSet, Signal};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{getpid, kill_process},
};
use safelight_imaging::Renderer;

use super::{DecoderLimits, protocol};

/// Begins the line of a decoder that has less of a sandbox than it was told to have.
pub(super) const UNCONFINED: &str = "sandbox: ";

/// The watching thread does next to nothing.
const WATCHER_STACK: usize = 64 << 10;

/// Answers requests from standard input on standard output until the input ends.
pub fn run(limits: DecoderLimits) -> io::Result<()> {
    // First: whoever sees its name may rely on it.
    ignore_polite_signals()?;
    introduce(limits.niceness);
    limits.confine()?;
    // Before there is a second thread, so that it is shut in as well.
    if limits.sandbox {
        shut_in();
    }
    let requests = io::stdin().as_fd().try_clone_to_owned()?;
    watch_worker(requests.try_clone()?)?;
    let mut renderer = Renderer::new().map_err(io::Error::other)?;
    let mut requests = File::from(requests);
    let mut answers = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    while let Some((request, picture)) = protocol::read_request(&mut requests, limits)? {
        limits.begin()?;
        answers.write_all(&[protocol::BEGUN])?;
        #[cfg(feature = "fail-points")]
        super::poison::take(&picture);
        let result = request.run(&mut renderer, &picture, &|| false);
        drop(picture);
        protocol::write_answer(&mut answers, result)?;
        DecoderLimits::end()?;
    }
    Ok(())
}

/// Tells the system what this is: the least important process, and the first to go when the
/// machine runs out of memory. A system that refuses leaves it as it was.
fn introduce(niceness: i32) {
    let _ = rustix::process::nice(niceness);
    let _ = fs::write("/proc/self/comm", "decoder");
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
}

/// Service managers and shells send these to all processes of a service; the worker still drains
/// then, and ends its decoders when it is done.
fn ignore_polite_signals() -> io::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    Ok(signals.thread_block()?)
}

/// Gives up what decoding does not need. What the system cannot do for that is told to the worker.
fn shut_in() {
    #[cfg(target_os = "linux")]
    let missing = super::sandbox::enter().join("; ");
    #[cfg(not(target_os = "linux"))]
    let missing = "there is none for this platform";
    if !missing.is_empty() {
        // In one piece. Nobody hears it if it cannot be said.
        let _ = io::stderr().write_all(format!("{UNCONFINED}{missing}\n").as_bytes());
    }
}

/// Ends this process as soon as its worker is gone, however it went and whatever a codec is doing:
/// nobody holds the other end of the pipe any more. (A parent-death signal would follow the thread
/// that started this process, not the worker.)
fn watch_worker(requests: OwnedFd) -> io::Result<()> {
    let watch = move || {
        let mut hung_up = [PollFd::new(&requests, PollFlags::empty())];
        loop {
            match poll(&mut hung_up, None) {
                Err(rustix::io::Errno::INTR) => {}
                // At once: exit handlers may wait for what the main thread holds.
                _ => drop(kill_process(getpid(), rustix::process::Signal::KILL)),
            }
        }
    };
    thread::Builder::new().name("watch".to_owned()).stack_size(WATCHER_STACK).spawn(watch)?;
    Ok(())
}
