//! One decoder, seen from the worker.

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

use super::{
    DecoderLimits,
    child::UNCONFINED,
    protocol::{self, BEGUN},
    request::{Answer, Request},
};

/// What a decoder says last on standard error is kept for the log, this many bytes.
const LAST_WORDS: usize = 4096;

/// How long a decoder whose pipes broke has to be dead by itself.
const DYING: Duration = Duration::from_secs(2);

/// What Rust writes before it aborts for want of memory, and what a panic says of memory that a
/// codec asked for politely and did not get.
const OUT_OF_MEMORY: [&str; 2] = ["memory allocation of", "AllocError"];

/// jemalloc must give back what a picture took before the next one comes: the kernel counts what is
/// mapped, not what is used.
const ALLOCATOR: (&str, &str) =
    ("_RJEM_MALLOC_CONF", "retain:false,narenas:1,dirty_decay_ms:0,muzzy_decay_ms:0");

/// The C library looks into /proc before it shrinks any heap but the first, which the sandbox
/// forbids.
const C_ALLOCATOR: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

/// A running decoder. Dropping it kills it.
pub(super) struct Process {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    last_words: Arc<Mutex<Vec<u8>>>,
    listener: JoinHandle<()>,
}

impl Process {
    /// Starts this very program as a decoder.
    pub fn start(limits: DecoderLimits) -> io::Result<Self> {
        let mut child = Command::new(program()?)
            .arg0("safelight")
            .arg("decoder")
            .arg(format!("--cpu-seconds={}", limits.cpu_seconds))
            .arg(format!("--memory-bytes={}", limits.memory_bytes))
            .arg(format!("--niceness={}", limits.niceness))
            .args(limits.sandbox.then_some("--sandbox"))
            // It decodes what strangers send: no passwords in its environment.
            .env_clear()
            .env(ALLOCATOR.0, ALLOCATOR.1)
            .env(C_ALLOCATOR.0, C_ALLOCATOR.1)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal goes to the worker, which still drains.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let (Some(requests), Some(answers), Some(errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("a pipe is missing"));
        };
        let last_words = Arc::default();
        let listener = tokio::spawn(listen(errors, Arc::clone(&last_words)));
        Ok(Self { child, requests, answers: BufReader::new(answers), last_words, listener })
    }

    /// Whether it has not died in the meantime.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a request; returns once the decoder has all of it and is about to look at it. Whatever
    /// happens before that is not the picture's fault.
    pub async fn begin(&mut self, request: &Request, picture: &[u8]) -> io::Result<()> {
        protocol::write_request(&mut self.requests, request, picture).await?;
        match self.answers.read_u8().await? {
            BEGUN => Ok(()),
            _ => Err(io::Error::other("this is no decoder")),
        }
    }

    /// The answer to the request that was begun.
    pub async fn answer(&mut self, request: &Request) -> io::Result<Result<Answer, Failure>> {
        protocol::read_answer(&mut self.answers, request).await
    }

    /// What became of a decoder whose pipes broke, for the client and, in full, for the log.
    pub async fn post_mortem(mut self, limits: DecoderLimits) -> Failure {
        let status = tokio::time::timeout(DYING, self.child.wait()).await;
        let Ok(Ok(status)) = status else {
            tracing::warn!("a decoder answered nonsense; it is replaced");
            return Failure::new(ErrorCode::DecoderCrashed, "the decoder failed on this picture");
        };
        // Its standard error has ended with it.
        let _ = tokio::time::timeout(DYING, &mut self.listener).await;
        let said = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        let said = String::from_utf8_lossy(&said);
        if status.signal() == Some(Signal::SYS.as_raw()) {
            tracing::warn!(
                "the sandbox ended a decoder that made a forbidden system call, which the kernel's log \
                 names (type=1326): a picture took it over, or a codec needs more than it may have"
            );
        }
        tracing::warn!(%status, said = said.trim(), "a decoder died; it is replaced");
        cause(status, &said, limits)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// Why a decoder died.
fn cause(status: ExitStatus, said: &str, limits: DecoderLimits) -> Failure {
    if status.signal() == Some(Signal::XCPU.as_raw()) {
        return Failure::new(
            ErrorCode::DecoderTimedOut,
            format!("decoding took more than {} s of processor time", limits.cpu_seconds),
        );
    }
    if status.signal() == Some(Signal::SYS.as_raw()) {
        return Failure::new(
            ErrorCode::DecoderCrashed,
            "decoding was ended: it did what no decoder needs to do",
        );
    }
    if OUT_OF_MEMORY.iter().any(|words| said.contains(words)) {
        return limits.too_much_memory();
    }
    let how = match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => "unknown cause".to_owned(),
    };
    Failure::new(ErrorCode::DecoderCrashed, format!("the decoder died of this picture ({how})"))
}

/// What a decoder says is missing of its sandbox. It is the first that it says, if anything.
fn unconfined(said: &[u8]) -> Option<&str> {
    let (line, _) = str::from_utf8(said).ok()?.split_once('\n')?;
    line.strip_prefix(UNCONFINED)
}

/// Keeps the last of what a decoder says. It must be read, or the decoder would wait.
async fn listen(mut errors: ChildStderr, last_words: Arc<Mutex<Vec<u8>>>) {
    /// Every decoder says the same.
    static TOLD: Once = Once::new();
    let mut heard = [0; 1024];
    while let Ok(count @ 1..) = errors.read(&mut heard).await {
        let mut last = last_words.lock().unwrap_or_else(PoisonError::into_inner);
        last.extend_from_slice(&heard[..count]);
        if let Some(missing) = unconfined(&last) {
            TOLD.call_once(|| {
                tracing::warn!(missing, "decoders are less confined than they should be");
            });
        }
        let too_much = last.len().saturating_sub(LAST_WORDS);
        last.drain(..too_much);
    }
}

/// The running program. On Linux its file may have been replaced by another version meanwhile; this
/// name stays right.
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
    fn a_death_is_told_by_its_signal_and_last_words() {
        let limits =
            DecoderLimits { cpu_seconds: 30, memory_bytes: 1 << 30, sandbox: true, niceness: 10 };
        let killed = |signal: Signal| ExitStatus::from_raw(signal.as_raw());
        let words = "memory allocation of 16777216 bytes failed\n";
        let polite = "panicked at cicp.rs: TryReserveError { kind: AllocError { … } }";
        for (status, said, code, message) in [
            (killed(Signal::XCPU), "", ErrorCode::DecoderTimedOut, "30 s of processor time"),
            (killed(Signal::ABORT), words, ErrorCode::DecoderOutOfMemory, "1024 MiB"),
            (ExitStatus::from_raw(101 << 8), polite, ErrorCode::DecoderOutOfMemory, "1024 MiB"),
            (killed(Signal::ABORT), "", ErrorCode::DecoderCrashed, "signal 6"),
            (killed(Signal::SYS), "", ErrorCode::DecoderCrashed, "no decoder needs"),
            (killed(Signal::SEGV), "", ErrorCode::DecoderCrashed, "signal 11"),
            (
                ExitStatus::from_raw(101 << 8),
                "panicked",
                ErrorCode::DecoderCrashed,
                "exit code 101",
            ),
        ] {
            let failure = cause(status, said, limits);
            assert_eq!(failure.code, code);
            assert!(failure.message.contains(message), "{failure}");
        }
    }

    #[test]
    fn what_a_sandbox_lacks_is_heard_in_a_whole_line() {
        assert_eq!(
            unconfined(b"sandbox: seccomp is missing (x)\nmore"),
            Some("seccomp is missing (x)")
        );
        for said in [&b""[..], b"sandbox: seccomp", b"panicked\nsandbox: x\n", b"\xFF\n"] {
            assert_eq!(unconfined(said), None);
        }
    }
}
