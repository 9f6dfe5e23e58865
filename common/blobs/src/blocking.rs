//! Blocking file operations in asynchronous code.

use std::io;

use super::BlobError;

/// Runs `work`, which may wait for a disk, on a thread for blocking work. Returns a panic as an error.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// [`blocking`] for several steps, of which some look at the store.
pub(super) async fn blocking_steps<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BlobError> + Send + 'static,
) -> Result<T, BlobError> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
