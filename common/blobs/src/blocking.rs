//! Blocking file operations in asynchronous code.

use std::io;

/// Runs `work`, which may wait for a disk, on a thread for blocking work. Returns a panic as an error.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
