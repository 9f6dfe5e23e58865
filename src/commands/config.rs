//! `safelight config`: print the configuration in force, or the defaults with their meanings.

use std::path::Path;

use clap::Args;
use safelight_config::{DEFAULTS, effective};

use crate::{error::CommandError, output::output};

/// Options of `safelight config`.
#[derive(Args)]
pub struct ConfigArgs {
    /// Print every key with its default and its meaning instead
    #[arg(long)]
    defaults: bool,
}

/// Prints TOML that can be used as a configuration file (with its secrets masked).
pub fn run(file: Option<&Path>, args: &ConfigArgs) -> Result<(), CommandError> {
    if args.defaults {
        output!("{}", DEFAULTS.trim_end());
    } else {
        output!("{}", effective(file)?.trim_end());
    }
    Ok(())
}
