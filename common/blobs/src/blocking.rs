//! Files from asynchronous code.

use std::io;

/// Runs `work`, which may wait for a disk, on a thread that nobody else waits for. A panic in it is an
/// error.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
