//! `with-engines COMMAND…` runs a command while a private PostgreSQL and a private RabbitMQ are up, which all
//! tests of the command share. A test runner that starts a process per test needs it: otherwise each process
//! starts its own engines. Exits with the command's code.

use std::{
    env,
    process::{Command, ExitCode},
    thread,
};

use anyhow::{Context, Result};
use safelight_testing::{postgres, postgres::Postgres, rabbitmq, rabbitmq::RabbitMq};

fn main() -> Result<ExitCode> {
    let mut words = env::args_os().skip(1);
    let program = words.next().context("usage: with-engines COMMAND…")?;
    let (postgres, rabbitmq) = thread::scope(|scope| {
        let rabbitmq = scope.spawn(RabbitMq::start);
        (Postgres::start(), rabbitmq.join())
    });
    let postgres = postgres.context("cannot start PostgreSQL")?;
    let rabbitmq = rabbitmq
        .map_err(|_| anyhow::anyhow!("starting RabbitMQ panicked"))?
        .context("cannot start RabbitMQ")?;
    let status = Command::new(&program)
        .args(words)
        .env(postgres::SHARED_PORT, postgres.port().to_string())
        .env(rabbitmq::SHARED_NODE, serde_json::to_string(rabbitmq.address())?)
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}
