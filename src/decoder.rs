//! `safelight decoder`: what a worker starts to decode pictures in. Not for people.

use clap::Args;
use safelight_decoder::DecoderLimits;

use crate::exit::Exit;

/// Options of `safelight decoder`.
#[derive(Clone, Copy, Args)]
pub struct DecoderArgs {
    /// Processor time for each picture, in seconds
    #[arg(long)]
    cpu_seconds: u64,
    /// Memory in all, in bytes
    #[arg(long)]
    memory_bytes: u64,
    /// Give up what decoding does not need
    #[arg(long)]
    sandbox: bool,
    /// Nice level, 0–19
    #[arg(long)]
    niceness: i32,
}

/// Runs until the worker hangs up.
pub fn run(args: DecoderArgs) -> Result<(), Exit> {
    let DecoderArgs { cpu_seconds, memory_bytes, sandbox, niceness } = args;
    let limits = DecoderLimits { cpu_seconds, memory_bytes, sandbox, niceness };
    safelight_decoder::run(limits).map_err(Exit::failed)
}
