//! Output of the program: the OpenAPI document, the default configuration, the help of every command.
//!
//! Changes affect generated clients, configuration files and scripts. Better wording is fine. A changed or
//! removed route, field, key, default, command or option is a breaking change.

use std::{fmt::Write, time::Duration};

use anyhow::{Context, Result};
use safelight_testing::server::{run, safelight};

use super::assert_reviewed;
use crate::e2e::binary;

/// How long a command that only prints may take on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);

#[test]
fn openapi_document() -> Result<()> {
    assert_reviewed("openapi", &stdout(&["openapi"])?);
    Ok(())
}

#[test]
fn default_configuration() -> Result<()> {
    assert_reviewed("config_defaults", &stdout(&["config", "--defaults"])?);
    Ok(())
}

#[test]
fn help_of_every_command() -> Result<()> {
    let mut text = String::new();
    add_help(&[], &mut text)?;
    assert_reviewed("help", &text);
    Ok(())
}

/// Adds the help of a command, then that of its subcommands.
fn add_help(command: &[&str], text: &mut String) -> Result<()> {
    let line = [command, &["--help"]].concat();
    let help = stdout(&line).with_context(|| line.join(" "))?;
    writeln!(text, "$ safelight {}\n{help}", line.join(" "))?;
    for subcommand in subcommands(&help) {
        add_help(&[command, &[subcommand]].concat(), text)?;
    }
    Ok(())
}

/// The commands that a help page lists below `Commands:`, without clap's `help`. Continued descriptions are
/// indented deeper than names.
fn subcommands(help: &str) -> impl Iterator<Item = &str> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.is_empty() || line.starts_with(' '))
        .filter_map(|line| line.strip_prefix("  ").filter(|name| !name.starts_with(' ')))
        .filter_map(|entry| entry.split_whitespace().next())
        .filter(|name| *name != "help")
}

/// The output of a command for 100 columns and without colors.
fn stdout(args: &[&str]) -> Result<String> {
    let mut command = safelight(binary(), args, &[]);
    command.env("COLUMNS", "100").env_remove("CLICOLOR_FORCE");
    Ok(run(command, LIMIT)?.success()?.stdout)
}
