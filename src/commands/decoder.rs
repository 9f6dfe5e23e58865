//! `safelight decoder`: the process in which a worker decodes pictures. Not for users.

use clap::Args;
use safelight_decoder::DecoderLimits;

use crate::error::CommandError;

/// Options of `safelight decoder`.
#[derive(Clone, Copy, Args)]
pub struct DecoderArgs {
    /// Processor time for each picture, in seconds
    #[arg(long)]
    cpu_seconds: u64,
    /// Memory in all, in bytes
    #[arg(long)]
    memory_bytes: u64,
    /// Drop every right that decoding does not need
    #[arg(long)]
    sandbox: bool,
    /// Nice level, 0–19
    #[arg(long)]
    niceness: i32,
}

/// Runs until the worker closes the connection.
pub fn run(args: DecoderArgs) -> Result<(), CommandError> {
    let DecoderArgs { cpu_seconds, memory_bytes, sandbox, niceness } = args;
    let limits = DecoderLimits { cpu_seconds, memory_bytes, sandbox, niceness };
    safelight_decoder::run(limits).map_err(CommandError::failed)
}
