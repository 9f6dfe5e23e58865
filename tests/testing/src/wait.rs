//! Waiting for conditions: the helpers of all tests that may depend on this crate. Tests of the libraries,
//! which this crate would make depend on engines and codecs, have helpers of their own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How long a condition may take on a busy machine. Tasks have longer limits.
pub const LIMIT: Duration = Duration::from_mins(1);

/// The interval between two checks.
const POLL: Duration = Duration::from_millis(10);

/// Waits until `condition` holds, for at most [`LIMIT`].
pub async fn eventually(what: &str, condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    eventually_within(LIMIT, what, condition).await
}

/// Waits until `condition` holds, for at most `limit`.
pub async fn eventually_within(
    limit: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition().await.with_context(|| what.to_owned())? {
        ensure!(Instant::now() < deadline, "after {limit:?} it is not true that {what}");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// [`eventually_within`] for code that blocks its thread.
pub fn blocking_eventually(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition().with_context(|| what.to_owned())? {
        ensure!(Instant::now() < deadline, "after {limit:?} it is not true that {what}");
        std::thread::sleep(POLL);
    }
    Ok(())
}
