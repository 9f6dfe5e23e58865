//! Waiting for what is expected to happen.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How long anything but a task may take, on a busy machine.
pub const LIMIT: Duration = Duration::from_mins(1);

/// Waits until `done` says so.
pub async fn eventually(what: &str, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !done().await.with_context(|| what.to_owned())? {
        ensure!(Instant::now() < deadline, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
