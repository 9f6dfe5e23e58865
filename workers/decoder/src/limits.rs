//! What one picture may cost a decoder.

use std::time::Duration;

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use safelight_domain::{ErrorCode, Failure};

/// How much longer than its processor time a picture may take by the clock. Decoding is the first
/// to wait on a busy machine.
const PATIENCE: u32 = 4;

/// Memory that a decoder takes beside its data: the program itself and the main thread's stack. The
/// kernel bounds the data, the promise is about all of it.
const PROGRAM_BYTES: u64 = 24 << 20;

/// Open files that a decoder needs: its three pipes, and some to look at itself at its start.
const FILES: u64 = 16;

/// What the configuration gives to one picture, and to the process that decodes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderLimits {
    /// Processor time, in seconds.
    pub cpu_seconds: u64,
    /// Memory of the whole process, in bytes.
    pub memory_bytes: u64,
    /// Whether the process gives up all rights that decoding does not need.
    pub sandbox: bool,
    /// How far the process steps back, in nice levels (0–19).
    pub niceness: i32,
}

impl DecoderLimits {
    /// The longest that a picture may take by the clock.
    pub(super) fn wall(self) -> Duration {
        Duration::from_secs(self.cpu_seconds) * PATIENCE
    }

    /// The failure of a picture that needs more.
    pub(super) fn too_much_memory(self) -> Failure {
        let mebibytes = self.memory_bytes >> 20;
        Failure::new(
            ErrorCode::DecoderOutOfMemory,
            format!("decoding would take more than {mebibytes} MiB of memory"),
        )
    }

    /// Bounds this process for the rest of its life.
    pub(super) fn confine(self) -> rustix::io::Result<()> {
        for (resource, most) in [
            (Resource::Core, 0),
            (Resource::Fsize, 0),
            (Resource::Nofile, FILES),
            (Resource::Data, self.memory_bytes.saturating_sub(PROGRAM_BYTES)),
        ] {
            setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
        }
        Ok(())
    }

    /// From now on this process may use `cpu_seconds` of processor time, or a little more: the
    /// kernel counts in whole seconds. Then it gets SIGXCPU, which ends it.
    pub(super) fn begin(self) -> rustix::io::Result<()> {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let used = u64::try_from(used.tv_sec).unwrap_or(0) + u64::from(used.tv_nsec > 0);
        limit_cpu(Some(used + self.cpu_seconds))
    }

    /// Between pictures there is no such limit.
    pub(super) fn end() -> rustix::io::Result<()> {
        limit_cpu(None)
    }
}

fn limit_cpu(seconds: Option<u64>) -> rustix::io::Result<()> {
    let maximum = getrlimit(Resource::Cpu).maximum;
    let current = match (seconds, maximum) {
        (Some(seconds), Some(most)) => Some(seconds.min(most)),
        (seconds, most) => seconds.or(most),
    };
    setrlimit(Resource::Cpu, Rlimit { current, maximum })
}
