//! PostgreSQL's own programs, which dump and restore a database. They get the password in a variable, never on the
//! command line, where every user of the machine could read it.

use std::{io, path::Path, process::Stdio};

use safelight_store_sql::postgres::libpq_variables;
use tokio::process::Command;

use crate::error::CommandError;

/// Characters of a program's messages that are shown.
const SHOWN: usize = 600;

/// Writes the view `snapshot` of the database to `file`, in the custom format. `server` is the server's major version.
pub async fn dump(url: &str, server: u32, snapshot: &str, file: &Path) -> Result<(), CommandError> {
    let found = major_version("pg_dump", server).await?;
    if found < server {
        return Err(CommandError::failed(format!(
            "pg_dump is of version {found}, and cannot dump a server of version {server}"
        ))
        .hint(install(server)));
    }
    let mut command = program("pg_dump", url)?;
    command.args(["--format=custom", "--no-password", "--lock-wait-timeout=60s"]);
    command.arg(format!("--snapshot={snapshot}")).arg("--file").arg(file);
    run("pg_dump", command).await
}

/// Restores a file that [`dump`] wrote into an empty database, as a whole or not at all.
pub async fn restore(url: &str, file: &Path) -> Result<(), CommandError> {
    let server = 0;
    major_version("pg_restore", server).await?;
    let variables = variables(url)?;
    let database = variables.iter().find(|(name, _)| *name == "PGDATABASE");
    let user = variables.iter().find(|(name, _)| *name == "PGUSER");
    let name = database.or(user).map(|(_, value)| value.clone()).unwrap_or_default();
    let mut command = program("pg_restore", url)?;
    command.args(["--exit-on-error", "--single-transaction", "--no-owner", "--no-acl"]);
    command.arg("--no-password").arg(format!("--dbname={name}")).arg(file);
    run("pg_restore", command).await
}

fn variables(url: &str) -> Result<Vec<(&'static str, String)>, CommandError> {
    libpq_variables(url).map_err(CommandError::usage)
}

fn program(name: &str, url: &str) -> Result<Command, CommandError> {
    let mut command = Command::new(name);
    command.envs(variables(url)?).env("PGCONNECT_TIMEOUT", "10");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

async fn run(name: &str, mut command: Command) -> Result<(), CommandError> {
    let output = command.output().await.map_err(|error| not_started(name, &error, 0))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().take(SHOWN).collect();
    Err(CommandError::failed(format!("{name} ended with {}: {said}", output.status)))
}

/// The major version of a program.
async fn major_version(name: &str, server: u32) -> Result<u32, CommandError> {
    let mut command = Command::new(name);
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|error| not_started(name, &error, server))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    parse_version(&said)
        .ok_or_else(|| CommandError::failed(format!("{name} does not say its version: {said}")))
}

/// The major version in a line such as `pg_dump (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)`.
fn parse_version(said: &str) -> Option<u32> {
    let (_, rest) = said.split_once(") ")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn not_started(name: &str, error: &io::Error, server: u32) -> CommandError {
    let failed = CommandError::failed(format!("cannot run {name}: {error}"));
    if error.kind() == io::ErrorKind::NotFound { failed.hint(install(server)) } else { failed }
}

fn install(server: u32) -> String {
    let version = if server > 0 { format!("-{server}") } else { String::new() };
    format!(
        "install PostgreSQL's programs (Debian: postgresql-client{version}), and put them on PATH"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_what_programs_say() {
        let debian = "pg_dump (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)\n";
        assert_eq!(parse_version(debian), Some(15));
        assert_eq!(parse_version("pg_restore (PostgreSQL) 18beta1\n"), Some(18));
        assert_eq!(parse_version("something else"), None);
    }
}
