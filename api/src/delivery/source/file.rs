//! Local files, streamed with constant memory: whole ones, and those that are still arriving.

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, stream};
use safelight_blobs::blocking;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

/// Bytes of the first read: all that is read for a client that takes nothing.
const FIRST_CHUNK_BYTES: u64 = 16 << 10;

/// Bytes of a read for a client that keeps up: few system calls, and little memory.
const CHUNK_BYTES: u64 = 256 << 10;

/// Chunks of more than [`FIRST_CHUNK_BYTES`] in this process: 64 MiB. A client that reads a little and then nothing
/// keeps a chunk, and there may be thousands of them; further ones get small chunks.
static LARGE_CHUNKS: Semaphore = Semaphore::const_new(256);

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
    /// This many bytes are there. They may still turn out to be wrong.
    Until(u64),
    /// All bytes are there, and are right.
    Whole,
    /// The bytes are wrong.
    Damaged,
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

    /// How far it has come.
    pub fn arrived(&self) -> Arrived {
        self.arriving.as_ref().map_or(Arrived::Whole, |arriving| *arriving.borrow())
    }

    /// Waits until the file is whole, or will never be.
    pub async fn settled(&self) -> Arrived {
        let Some(arriving) = &self.arriving else { return Arrived::Whole };
        let mut arriving = arriving.clone();
        let has_ended = |arrived: &Arrived| !matches!(arrived, Arrived::Until(_));
        arriving.wait_for(has_ended).await.map_or(Arrived::Never, |arrived| *arrived)
    }

    /// The bytes of `span`, as they come. The last one is held back until all of the file is known to be right: a
    /// client of a damaged object gets a broken connection, never a complete response.
    pub fn stream(
        self: Arc<Self>,
        span: Range<u64>,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let start = (self, span, FIRST_CHUNK_BYTES, None);
        stream::try_unfold(start, async |(local, span, most, last)| {
            // The client has taken the chunk before.
            drop(last);
            if span.is_empty() {
                return Ok(None);
            }
            let until = local.until(&span).await?;
            let large =
                if most > FIRST_CHUNK_BYTES { LARGE_CHUNKS.try_acquire().ok() } else { None };
            let most_now = if large.is_some() { most } else { FIRST_CHUNK_BYTES };
            let chunk = local.read(span.start..until.min(span.start + most_now)).await?;
            let next = span.start + chunk.len() as u64;
            Ok(Some((chunk, (local, next..span.end, (most * 2).min(CHUNK_BYTES), large))))
        })
    }

    /// Waits for bytes of `span`, which is not empty; how far they go.
    async fn until(&self, span: &Range<u64>) -> io::Result<u64> {
        let Some(arriving) = &self.arriving else { return Ok(span.end) };
        let mut arriving = arriving.clone();
        let safe = |until: u64| until.min(span.end - 1);
        let come = |arrived: &Arrived| match arrived {
            Arrived::Until(until) => safe(*until) > span.start,
            Arrived::Whole | Arrived::Damaged | Arrived::Never => true,
        };
        match arriving.wait_for(come).await.map(|arrived| *arrived) {
            Ok(Arrived::Until(until)) => Ok(safe(until)),
            Ok(Arrived::Whole) => Ok(span.end),
            Ok(Arrived::Damaged) => Err(io::Error::other("the object is damaged")),
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
    use futures::{StreamExt, TryStreamExt};

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
        let early: Vec<Bytes> =
            local.clone().stream(5..600_000).take(2).try_collect().await.expect("the first bytes");
        assert_eq!(early.concat(), content[5..5 + early.concat().len()]);
        assert!(!reader.is_finished(), "the last byte waits until all are known to be right");
        progress.send_replace(Arrived::Whole);
        let read = reader.await.expect("no panic").expect("bytes");
        assert_eq!(read.concat(), content[100..600_000]);
        assert_eq!(lost.await.expect("no panic").expect("bytes").concat(), content);
    }

    #[tokio::test]
    async fn object_that_does_not_arrive_right_is_never_complete() {
        for end in [Arrived::Damaged, Arrived::Never] {
            let file = tempfile::tempfile().expect("a file");
            file.write_all_at(&[7; 1000], 0).expect("written");
            let (progress, arriving) = watch::channel(Arrived::Until(1000));
            let local = Arc::new(Local::arriving(file, arriving));
            let part = tokio::spawn(local.clone().stream(10..20).try_collect::<Vec<Bytes>>());
            let all = tokio::spawn(local.clone().stream(0..1000).try_collect::<Vec<Bytes>>());
            progress.send_replace(end);
            assert!(part.await.expect("no panic").is_err(), "{end:?}");
            assert!(all.await.expect("no panic").is_err(), "{end:?}");
            assert_eq!(local.settled().await, end);
        }
    }

    #[tokio::test]
    async fn chunks_are_small_while_many_clients_keep_large_ones() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(&vec![7; 1_000_000], 0).expect("written");
        let local = Arc::new(Local::whole(file));
        let kept: Vec<_> = std::iter::from_fn(|| LARGE_CHUNKS.try_acquire().ok()).collect();
        let stream = || local.clone().stream(0..1_000_000).try_collect::<Vec<Bytes>>();
        let small = stream().await.expect("bytes");
        assert!(small.iter().all(|chunk| chunk.len() as u64 <= FIRST_CHUNK_BYTES));
        assert_eq!(small.concat().len(), 1_000_000);
        drop(kept);
        let large = stream().await.expect("bytes");
        assert!(large.iter().any(|chunk| chunk.len() as u64 == CHUNK_BYTES));
    }

    #[tokio::test]
    async fn truncated_file_is_an_error() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(b"short", 0).expect("written");
        let read = Arc::new(Local::whole(file)).stream(0..10).try_collect::<Vec<Bytes>>().await;
        assert!(read.is_err());
    }
}
