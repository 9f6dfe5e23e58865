//! The decoder process. It has codecs and its pipes: no configuration, no async runtime, and no secrets in its
//! environment.

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

use crate::{limits::DecoderLimits, protocol};

/// The prefix of the line in which a decoder reports an incomplete sandbox.
pub(super) const SANDBOX_WARNING: &str = "sandbox: ";

/// The watching thread needs little stack.
const WATCHER_STACK: usize = 64 << 10;

/// Reads requests from standard input and writes responses to standard output until the input ends.
pub fn run(limits: DecoderLimits) -> io::Result<()> {
    // First, because tests rely on it once the process has its name.
    ignore_termination_signals()?;
    set_priority_and_name(limits.niceness);
    limits.confine()?;
    // Before the second thread starts, so that it is confined as well.
    if limits.sandbox {
        enter_sandbox();
    }
    let requests = io::stdin().as_fd().try_clone_to_owned()?;
    watch_worker(requests.try_clone()?)?;
    let mut renderer = Renderer::new().map_err(io::Error::other)?;
    let mut requests = File::from(requests);
    let mut responses = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    while let Some((request, picture)) = protocol::read_request(&mut requests, limits)? {
        limits.start_picture()?;
        responses.write_all(&[protocol::STARTED])?;
        #[cfg(feature = "fail-points")]
        crate::poison::trigger(&picture);
        let result = request.run(&mut renderer, &picture, &|| false);
        drop(picture);
        protocol::write_response(&mut responses, result)?;
        DecoderLimits::finish_picture()?;
    }
    Ok(())
}

/// Makes this the process with the lowest priority, and the first that the system kills when it runs out of
/// memory. Errors are ignored, because decoding works without.
fn set_priority_and_name(niceness: i32) {
    let _ = rustix::process::nice(niceness);
    let _ = fs::write("/proc/self/comm", "decoder");
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
}

/// Service managers and shells send these signals to all processes of a service. The worker still drains
/// then, and stops its decoders when it is done.
fn ignore_termination_signals() -> io::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
    Ok(signals.thread_block()?)
}

/// Gives up all rights that decoding does not need. Reports to the worker what this system does not support.
fn enter_sandbox() {
    #[cfg(target_os = "linux")]
    let missing = super::sandbox::enter().join("; ");
    #[cfg(not(target_os = "linux"))]
    let missing = "not supported on this platform";
    if !missing.is_empty() {
        // In one write. There is no other channel to report an error of it.
        let _ = io::stderr().write_all(format!("{SANDBOX_WARNING}{missing}\n").as_bytes());
    }
}

/// Kills this process as soon as its worker is gone, even while a codec runs: then the other end of the pipe
/// is closed. (A parent-death signal would follow the thread that started this process, not the worker.)
fn watch_worker(requests: OwnedFd) -> io::Result<()> {
    let watch = move || {
        let mut hung_up = [PollFd::new(&requests, PollFlags::empty())];
        loop {
            match poll(&mut hung_up, None) {
                Err(rustix::io::Errno::INTR) => {}
                // Not `exit`, because exit handlers may wait for a lock of the main thread.
                _ => drop(kill_process(getpid(), rustix::process::Signal::KILL)),
            }
        }
    };
    thread::Builder::new().name("watch".to_owned()).stack_size(WATCHER_STACK).spawn(watch)?;
    Ok(())
}
