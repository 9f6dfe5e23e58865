//! One decoder process, from the worker's side.

use std::{
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, Once, PoisonError},
    time::Duration,
};

use rustix::process::Signal;
use safelight_domain::{ErrorCode, Failure};
use tokio::{
    io::{AsyncReadExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    task::JoinHandle,
};

use crate::{
    child::SANDBOX_WARNING,
    limits::DecoderLimits,
    protocol::{self, STARTED},
    request::{Request, Response},
};

/// The last bytes of a decoder's standard error are kept for the log.
const STDERR_TAIL: usize = 4096;

/// How long a decoder has to exit after its pipes broke.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// The message with which Rust aborts when memory runs out, and the error in a panic after a fallible
/// allocation.
const OUT_OF_MEMORY: [&str; 2] = ["memory allocation of", "AllocError"];

/// The signals by which a picture can end its decoder: faults, aborts, and the limits of [`DecoderLimits`]. All
/// others come from outside.
const CAUSED_BY_PICTURE: [Signal; 9] = [
    Signal::ABORT,
    Signal::BUS,
    Signal::FPE,
    Signal::ILL,
    Signal::SEGV,
    Signal::SYS,
    Signal::TRAP,
    Signal::XCPU,
    Signal::XFSZ,
];

/// mimalloc must return a picture's memory before the next picture, and must not reserve more than it
/// uses: the kernel's limit counts mapped memory, not used memory. It must not look for NUMA nodes in
/// /sys, which the sandbox forbids.
const ALLOCATOR: [(&str, &str); 4] = [
    ("MIMALLOC_PURGE_DELAY", "0"),
    ("MIMALLOC_ARENA_RESERVE", "65536"), // KiB
    ("MIMALLOC_ARENA_EAGER_COMMIT", "0"),
    ("MIMALLOC_USE_NUMA_NODES", "1"),
];

/// With more than one arena, the C library reads /proc before it shrinks a heap, which the sandbox
/// forbids.
const C_ALLOCATOR: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

/// A running decoder. Dropping it kills the process.
pub(super) struct Process {
    child: Child,
    requests: ChildStdin,
    responses: BufReader<ChildStdout>,
    stderr_tail: Arc<Mutex<Vec<u8>>>,
    stderr_reader: JoinHandle<()>,
}

impl Process {
    /// Starts this program as a decoder.
    pub fn start(limits: DecoderLimits) -> io::Result<Self> {
        let mut child = Command::new(program()?)
            .arg0("safelight")
            .arg("decoder")
            .arg(format!("--cpu-seconds={}", limits.cpu_seconds))
            .arg(format!("--memory-bytes={}", limits.memory_bytes))
            .arg(format!("--niceness={}", limits.niceness))
            .args(limits.sandbox.then_some("--sandbox"))
            // It decodes untrusted data, so its environment must contain no passwords.
            .env_clear()
            .envs(ALLOCATOR)
            .env(C_ALLOCATOR.0, C_ALLOCATOR.1)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal must not reach it, because the worker still drains.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (Some(requests), Some(responses), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("a pipe is missing"));
        };
        let stderr_tail = Arc::default();
        let stderr_reader = tokio::spawn(read_stderr(stderr, Arc::clone(&stderr_tail)));
        let responses = BufReader::new(responses);
        Ok(Self { child, requests, responses, stderr_tail, stderr_reader })
    }

    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a request, and returns once the decoder has received all of it and starts to work on it. An
    /// error before that is not the picture's fault.
    pub async fn send(&mut self, request: &Request, picture: &[u8]) -> io::Result<()> {
        protocol::write_request(&mut self.requests, request, picture).await?;
        match self.responses.read_u8().await? {
            STARTED => Ok(()),
            _ => Err(io::Error::other("the process is not a decoder")),
        }
    }

    /// Receives the response to the request that was sent.
    pub async fn receive(&mut self, request: &Request) -> io::Result<Result<Response, Failure>> {
        protocol::read_response(&mut self.responses, request).await
    }

    /// Finds out why a decoder's pipes broke. Logs the details and returns the failure for the client.
    pub async fn post_mortem(mut self, limits: DecoderLimits) -> Failure {
        let status = tokio::time::timeout(EXIT_TIMEOUT, self.child.wait()).await;
        let Ok(Ok(status)) = status else {
            tracing::warn!("a decoder sent an invalid response; replacing it");
            return Failure::new(ErrorCode::DecoderCrashed, "the decoder failed on this picture");
        };
        // Standard error ends with the process.
        let _ = tokio::time::timeout(EXIT_TIMEOUT, &mut self.stderr_reader).await;
        let stderr = self.stderr_tail.lock().unwrap_or_else(PoisonError::into_inner);
        let stderr = String::from_utf8_lossy(&stderr);
        if status.signal() == Some(Signal::SYS.as_raw()) {
            tracing::warn!(
                "the sandbox killed a decoder for a forbidden system call (the kernel's log names it, \
                 type=1326): a picture exploited a codec, or a codec needs a call that is not allowed"
            );
        }
        tracing::warn!(%status, stderr = stderr.trim(), "a decoder died; replacing it");
        cause_of_death(status, &stderr, limits)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stderr_reader.abort();
    }
}

/// Why a decoder died. Not called for one that this worker killed: its attempt has ended before.
fn cause_of_death(status: ExitStatus, stderr: &str, limits: DecoderLimits) -> Failure {
    if status.signal() == Some(Signal::XCPU.as_raw()) {
        return Failure::new(
            ErrorCode::DecoderTimedOut,
            format!("decoding took more than {} s of processor time", limits.cpu_seconds),
        );
    }
    if status.signal() == Some(Signal::SYS.as_raw()) {
        return Failure::new(
            ErrorCode::DecoderCrashed,
            "decoding was stopped: it made a system call that no decoder needs",
        );
    }
    if OUT_OF_MEMORY.iter().any(|words| stderr.contains(words)) {
        return limits.too_much_memory();
    }
    if let Some(signal) = status.signal().filter(|signal| !is_caused_by_picture(*signal)) {
        return Failure::new(
            ErrorCode::DecoderKilled,
            format!(
                "the decoder was killed from outside (signal {signal}), perhaps because the machine ran \
                 out of memory"
            ),
        );
    }
    let how = match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "unknown cause".to_owned(),
    };
    Failure::new(ErrorCode::DecoderCrashed, format!("the decoder crashed on this picture ({how})"))
}

/// SIGKILL is never the picture's doing. The limit on processor time is a soft one (SIGXCPU) that the kernel
/// enforces before any hard one, a decoder beyond its memory aborts, and [`child`](crate::child) kills itself
/// only after its worker is gone.
fn is_caused_by_picture(signal: i32) -> bool {
    CAUSED_BY_PICTURE.iter().any(|own| own.as_raw() == signal)
}

/// The part of the sandbox that a decoder reports missing, always in its first line.
fn sandbox_warning(stderr: &[u8]) -> Option<&str> {
    let (line, _) = str::from_utf8(stderr).ok()?.split_once('\n')?;
    line.strip_prefix(SANDBOX_WARNING)
}

/// Keeps the end of a decoder's standard error. A decoder would block if its output was not read.
async fn read_stderr(mut stderr: ChildStderr, stderr_tail: Arc<Mutex<Vec<u8>>>) {
    /// Every decoder reports the same.
    static LOGGED: Once = Once::new();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        let mut tail = stderr_tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(&buffer[..count]);
        if let Some(missing) = sandbox_warning(&tail) {
            LOGGED.call_once(|| {
                tracing::warn!(missing, "the sandbox of the decoders is incomplete");
            });
        }
        let excess = tail.len().saturating_sub(STDERR_TAIL);
        tail.drain(..excess);
    }
}

/// The path of the running program. On Linux its file may have been replaced by another version since the
/// start; this path still opens the running one.
fn program() -> io::Result<OsString> {
    if cfg!(target_os = "linux") {
        return Ok("/proc/self/exe".into());
    }
    std::env::current_exe().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cause_of_death_follows_from_signal_and_stderr() {
        let limits =
            DecoderLimits { cpu_seconds: 30, memory_bytes: 1 << 30, sandbox: true, niceness: 10 };
        let killed = |signal: Signal| ExitStatus::from_raw(signal.as_raw());
        let abort = "memory allocation of 16777216 bytes failed\n";
        let panic = "panicked at cicp.rs: TryReserveError { kind: AllocError { … } }";
        for (status, stderr, code, message) in [
            (killed(Signal::XCPU), "", ErrorCode::DecoderTimedOut, "30 s of processor time"),
            (killed(Signal::ABORT), abort, ErrorCode::DecoderOutOfMemory, "1024 MiB"),
            (ExitStatus::from_raw(101 << 8), panic, ErrorCode::DecoderOutOfMemory, "1024 MiB"),
            (killed(Signal::ABORT), "", ErrorCode::DecoderCrashed, "signal 6"),
            (killed(Signal::SYS), "", ErrorCode::DecoderCrashed, "no decoder needs"),
            (killed(Signal::SEGV), "", ErrorCode::DecoderCrashed, "signal 11"),
            (killed(Signal::BUS), "", ErrorCode::DecoderCrashed, "signal 7"),
            (killed(Signal::KILL), "", ErrorCode::DecoderKilled, "signal 9"),
            (killed(Signal::TERM), "", ErrorCode::DecoderKilled, "signal 15"),
            (killed(Signal::QUIT), "", ErrorCode::DecoderKilled, "signal 3"),
            (
                ExitStatus::from_raw(101 << 8),
                "panicked",
                ErrorCode::DecoderCrashed,
                "exit code 101",
            ),
        ] {
            let failure = cause_of_death(status, stderr, limits);
            assert_eq!(failure.code, code);
            assert!(failure.message.contains(message), "{failure}");
        }
    }

    #[test]
    fn sandbox_warning_is_complete_first_line() {
        assert_eq!(
            sandbox_warning(b"sandbox: seccomp is missing (x)\nmore"),
            Some("seccomp is missing (x)")
        );
        for stderr in [&b""[..], b"sandbox: seccomp", b"panicked\nsandbox: x\n", b"\xFF\n"] {
            assert_eq!(sandbox_warning(stderr), None);
        }
    }
}
