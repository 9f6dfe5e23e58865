//! Local files, streamed with constant memory: whole ones, and those that are still arriving.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, stream};
use safelight_blobs::blocking;
use tokio::{sync::watch, time::timeout};

/// Bytes of the first read: all that is read for a client that takes nothing.
const FIRST_CHUNK_BYTES: u64 = 16 << 10;

/// Bytes of a read for a client that keeps up: few system calls, and little memory.
const CHUNK_BYTES: u64 = 256 << 10;

/// How long a disk may take for a chunk. A client can retry a broken response, but not one that hangs.
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// A file that any number of requests read at their own pace.
pub struct Local {
    file: File,
    /// `None` for a file that is whole.
    arriving: Option<watch::Receiver<Arrived>>,
}

/// How far a file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrived {
    /// This many bytes can be read.
    Until(u64),
    /// No more will come.
    Never,
}

impl Local {
    /// A file that is whole.
    pub fn whole(file: File) -> Self {
        Self { file, arriving: None }
    }

    /// A file that is being written.
    pub fn arriving(file: File, arriving: watch::Receiver<Arrived>) -> Self {
        Self { file, arriving: Some(arriving) }
    }

    /// Whether these bytes are there already.
    pub fn has(&self, span: &Range<u64>) -> bool {
        let Some(arriving) = &self.arriving else { return true };
        matches!(*arriving.borrow(), Arrived::Until(until) if span.end <= until)
    }

    /// The bytes of `span`, as they come.
    pub fn stream(
        self: Arc<Self>,
        span: Range<u64>,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        stream::try_unfold((self, span, FIRST_CHUNK_BYTES), async |(local, span, most)| {
            if span.is_empty() {
                return Ok(None);
            }
            let until = local.until(span.start).await?.min(span.end);
            let chunk = local.read(span.start..until.min(span.start + most)).await?;
            let next = span.start + chunk.len() as u64;
            Ok(Some((chunk, (local, next..span.end, (most * 2).min(CHUNK_BYTES)))))
        })
    }

    /// Waits for bytes after `at`; how far they go.
    async fn until(&self, at: u64) -> io::Result<u64> {
        let Some(arriving) = &self.arriving else { return Ok(u64::MAX) };
        let mut arriving = arriving.clone();
        let come = |arrived: &Arrived| !matches!(arrived, Arrived::Until(until) if *until <= at);
        match arriving.wait_for(come).await.map(|arrived| *arrived) {
            Ok(Arrived::Until(until)) => Ok(until),
            Ok(Arrived::Never) | Err(_) => Err(io::Error::other("the object did not arrive")),
        }
    }

    async fn read(self: &Arc<Self>, span: Range<u64>) -> io::Result<Bytes> {
        let length = usize::try_from(span.end - span.start).map_err(io::Error::other)?;
        let mut buffer = vec![0; length];
        // Bytes in the page cache are read directly; only a disk is worth another thread.
        if let Some(count) = read_cached(&self.file, &mut buffer, span.start) {
            buffer.truncate(count);
            return Ok(buffer.into());
        }
        let local = self.clone();
        let read = move || {
            local.file.read_exact_at(&mut buffer, span.start)?;
            Ok(Bytes::from(buffer))
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer");
        timeout(READ_PATIENCE, blocking(read)).await.map_err(late)?
    }
}

/// Reads without waiting for a disk: how many bytes, if there were any.
#[cfg(target_os = "linux")]
fn read_cached(file: &File, buffer: &mut [u8], at: u64) -> Option<usize> {
    let slices = &mut [io::IoSliceMut::new(buffer)];
    let read = rustix::io::preadv2(file, slices, at, rustix::io::ReadWriteFlags::NOWAIT);
    read.ok().filter(|count| *count > 0)
}

#[cfg(not(target_os = "linux"))]
fn read_cached(_: &File, _: &mut [u8], _: u64) -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn file_is_read_while_it_arrives() {
        let content: Vec<u8> = (0..700_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let file = tempfile::tempfile().expect("a file");
        let (progress, arriving) = watch::channel(Arrived::Until(0));
        let writer = file.try_clone().expect("a handle");
        let local = Arc::new(Local::arriving(file, arriving));
        let reader = tokio::spawn(local.clone().stream(100..600_000).try_collect::<Vec<Bytes>>());
        let lost = tokio::spawn(local.clone().stream(0..700_000).try_collect::<Vec<Bytes>>());
        for (at, part) in content.chunks(150_000).enumerate() {
            writer.write_all_at(part, at as u64 * 150_000).expect("written");
            progress.send_replace(Arrived::Until(((at as u64 + 1) * 150_000).min(690_000)));
            tokio::task::yield_now().await;
        }
        assert!(local.has(&(0..690_000)) && !local.has(&(690_000..690_001)));
        let read = reader.await.expect("no panic").expect("bytes");
        assert_eq!(read.concat(), content[100..600_000]);
        progress.send_replace(Arrived::Never);
        assert!(
            lost.await.expect("no panic").is_err(),
            "missing bytes are not the end of the file"
        );
    }

    #[tokio::test]
    async fn truncated_file_is_an_error() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(b"short", 0).expect("written");
        let read = Arc::new(Local::whole(file)).stream(0..10).try_collect::<Vec<Bytes>>().await;
        assert!(read.is_err());
    }
}
