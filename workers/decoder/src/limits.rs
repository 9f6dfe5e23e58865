//! Limits on a decoder process.

use std::time::Duration;

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    time::{ClockId, clock_gettime},
};
use safelight_domain::{ErrorCode, Failure, Lane};

/// The ratio of elapsed time to processor time that a picture may take. On a busy machine, decoding waits
/// because of its low priority.
const WALL_PER_CPU: u32 = 4;

/// Memory of a decoder besides its data: the program itself and the main thread's stack. The kernel's limit is
/// on the data, ours is on the total.
const PROGRAM_BYTES: u64 = 24 << 20;

/// Open files that a decoder needs: its three pipes, and some in /proc at startup.
const MAX_FILES: u64 = 16;

/// The nice level of decoding: about a tenth of a busy processor remains for it while requests need the rest.
/// Accepting uploads has priority over decoding.
const NICENESS: i32 = 10;

/// The nice level of decoding for backfills, which get what all others leave.
const BULK_NICENESS: i32 = 19;

/// The nice level for a lane.
pub(super) const fn niceness(lane: Lane) -> i32 {
    match lane {
        Lane::Interactive => NICENESS,
        Lane::Bulk => BULK_NICENESS,
    }
}

/// Limits on a decoder process and on each picture that it decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderLimits {
    /// Processor time per picture, in seconds.
    pub cpu_seconds: u64,
    /// Memory of the whole process, in bytes.
    pub memory_bytes: u64,
    /// Whether the process enters the sandbox.
    pub sandbox: bool,
    /// The nice level of the process (0–19).
    pub niceness: i32,
}

impl DecoderLimits {
    /// The maximum elapsed time for a picture.
    pub(super) fn wall(self) -> Duration {
        Duration::from_secs(self.cpu_seconds) * WALL_PER_CPU
    }

    /// The failure of a picture that exceeds the memory limit.
    pub(super) fn too_much_memory(self) -> Failure {
        let mebibytes = self.memory_bytes >> 20;
        Failure::new(
            ErrorCode::DecoderOutOfMemory,
            format!("decoding would take more than {mebibytes} MiB of memory"),
        )
    }

    /// Sets the limits of this process that hold until it exits.
    pub(super) fn confine(self) -> rustix::io::Result<()> {
        for (resource, limit) in [
            (Resource::Core, 0),
            (Resource::Fsize, 0),
            (Resource::Nofile, MAX_FILES),
            (Resource::Data, self.memory_bytes.saturating_sub(PROGRAM_BYTES)),
        ] {
            setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?;
        }
        Ok(())
    }

    /// Allows this process `cpu_seconds` of processor time from now on, rounded up because the kernel counts
    /// in whole seconds. Then SIGXCPU kills it.
    pub(super) fn start_picture(self) -> rustix::io::Result<()> {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let used = u64::try_from(used.tv_sec).unwrap_or(0) + u64::from(used.tv_nsec > 0);
        limit_cpu(Some(used + self.cpu_seconds))
    }

    /// Removes the limit on processor time until the next picture.
    pub(super) fn finish_picture() -> rustix::io::Result<()> {
        limit_cpu(None)
    }
}

fn limit_cpu(seconds: Option<u64>) -> rustix::io::Result<()> {
    let maximum = getrlimit(Resource::Cpu).maximum;
    let current = match (seconds, maximum) {
        (Some(seconds), Some(maximum)) => Some(seconds.min(maximum)),
        (seconds, maximum) => seconds.or(maximum),
    };
    setrlimit(Resource::Cpu, Rlimit { current, maximum })
}
