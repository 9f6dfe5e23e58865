//! `safelight config`: what is in force, or what there is to set.

use std::path::Path;

use clap::Args;
use safelight_config::{DEFAULTS, effective};

use crate::{exit::Exit, say::say};

/// Options of `safelight config`.
#[derive(Args)]
pub struct ConfigArgs {
    /// Print every key with its default and its meaning instead
    #[arg(long)]
    defaults: bool,
}

/// Prints TOML that can be used as a configuration file (with its secrets masked).
pub fn run(file: Option<&Path>, args: &ConfigArgs) -> Result<(), Exit> {
    if args.defaults {
        say!("{}", DEFAULTS.trim_end());
    } else {
        say!("{}", effective(file)?.trim_end());
    }
    Ok(())
}
