//! Large objects of a remote store: fetched once into a local file, which all who want them read
//! while it grows.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use safelight_blobs::{BlobError, BlobStream};
use safelight_domain::{ContentHash, ContentHasher};
use tokio::sync::watch;

use super::{
    Content, Inner, Tier, counters,
    disk::Unfinished,
    errands::patience,
    file::{Arrived, Local},
};

/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 256 << 10;

/// How long one write may take. Others wait for it already, so it is given longer than a question.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// How often a store that breaks off is asked for the rest.
const RESUMES: u32 = 3;

/// Where an object arrives.
enum Place {
    /// In the disk cache, which keeps it.
    Kept(Unfinished),
    /// In a file without a name, which goes with the last who reads it.
    Passing,
}

/// An object on its way.
struct Arrival {
    inner: Arc<Inner>,
    content: Content,
    file: Arc<File>,
    place: Place,
    progress: watch::Sender<Arrived>,
    hasher: ContentHasher,
    written: u64,
}

/// Why an object does not come any further.
enum Stopped {
    /// The store broke off, and may be asked for the rest.
    Store(BlobError),
    /// It cannot be written down.
    Disk(io::Error),
}

/// Begins to fetch an object; its first bytes can be read as soon as they have come. An error if there is no
/// place for it.
pub(super) async fn begin(
    inner: &Arc<Inner>,
    content: &Content,
    stream: BlobStream,
) -> io::Result<(Local, Tier)> {
    let (file, place, tier) = if let Some((file, new)) = kept(inner, content).await {
        (file, Place::Kept(new), Tier::Store)
    } else {
        let spool = inner.spool.clone();
        let passing = move || {
            std::fs::create_dir_all(&spool)?;
            tempfile::tempfile_in(spool)
        };
        (inner.errands.run(patience(0), passing).await?, Place::Passing, Tier::Direct)
    };
    let (progress, arriving) = watch::channel(Arrived::Until(0));
    let local = Local::arriving(file.try_clone()?, arriving);
    let arrival = Arrival {
        inner: inner.clone(),
        content: content.clone(),
        file: Arc::new(file),
        place,
        progress,
        hasher: ContentHasher::default(),
        written: 0,
    };
    tokio::spawn(arrival.run(stream));
    Ok((local, tier))
}

/// A file of the disk cache to write to, if that takes the object.
async fn kept(inner: &Inner, content: &Content) -> Option<(File, Unfinished)> {
    let side = inner.disk.as_ref().filter(|side| side.tier.takes(content.bytes))?;
    let disk = side.usable()?.clone();
    let make = move || {
        let new = disk.begin()?;
        Ok((new.create()?, new))
    };
    side.heard(inner.errands.run(patience(0), make).await)
}

impl Arrival {
    async fn run(mut self, mut stream: BlobStream) {
        for attempt in 0.. {
            match self.take(stream).await {
                Ok(()) if self.written == self.content.bytes => return self.finish().await,
                Ok(()) if self.is_unwanted() => return,
                Ok(()) => {
                    tracing::warn!(path = %self.content.key.path(), "a read of a blob broke off");
                }
                Err(Stopped::Store(error)) => {
                    tracing::warn!(%error, "a read of a blob broke off");
                }
                Err(Stopped::Disk(error)) => {
                    self.cannot_be_kept(&error);
                    break;
                }
            }
            if attempt == RESUMES {
                break;
            }
            counters::store_read();
            let rest = self.written..self.content.bytes;
            match self.inner.blobs.stream_range(&self.content.key, rest).await {
                Ok(resumed) => stream = resumed,
                Err(_) => break,
            }
        }
        self.progress.send_replace(Arrived::Never);
        // Which removes a file, from a disk that may hang.
        let place = self.place;
        let remove = move || {
            drop(place);
            Ok(())
        };
        let _ = self.inner.errands.run(patience(0), remove).await;
    }

    /// Whether nobody reads what nobody will keep.
    fn is_unwanted(&self) -> bool {
        matches!(self.place, Place::Passing) && self.progress.receiver_count() == 0
    }

    /// Writes what comes, until it ends or is not wanted any more.
    async fn take(&mut self, mut stream: BlobStream) -> Result<(), Stopped> {
        let mut buffer = BytesMut::new();
        while let Some(chunk) = stream.try_next().await.map_err(Stopped::Store)? {
            buffer.extend_from_slice(&chunk);
            if buffer.len() >= WRITE_BYTES {
                self.write(buffer.split().freeze()).await?;
            }
            if self.is_unwanted() {
                return Ok(());
            }
        }
        self.write(buffer.freeze()).await
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), Stopped> {
        let (count, file, at) = (bytes.len() as u64, self.file.clone(), self.written);
        let mut hasher = self.hasher.clone();
        let write = move || {
            hasher.update(&bytes);
            file.write_all_at(&bytes, at)?;
            Ok(hasher)
        };
        let written = self.inner.errands.run(WRITE_PATIENCE, write).await;
        self.hasher = written.map_err(Stopped::Disk)?;
        self.written += count;
        // The last bytes are held back until all of them are known to be right: whoever reads a
        // damaged object gets a broken connection, never a whole answer.
        let safe = self.written.min(self.content.bytes.saturating_sub(1));
        self.progress.send_replace(Arrived::Until(safe));
        Ok(())
    }

    /// The disk cache is full or broken; or the folder for what passes is, which is no tier.
    fn cannot_be_kept(&self, error: &io::Error) {
        if let (Place::Kept(_), Some(side)) = (&self.place, &self.inner.disk) {
            side.failed(error);
        } else {
            tracing::warn!(%error, "a large object cannot be written down on its way");
        }
    }

    async fn finish(self) {
        let hash: ContentHash = self.hasher.finish();
        if hash != self.content.sha256 {
            self.content.damaged("damaged");
            self.progress.send_replace(Arrived::Never);
            return;
        }
        if let (Place::Kept(new), Some(side)) = (self.place, &self.inner.disk) {
            let disk = side.tier.clone();
            let Content { cached, bytes, .. } = self.content;
            let finish = move || disk.finish(&cached, bytes, &new);
            side.heard(self.inner.errands.run(patience(0), finish).await);
        }
        self.progress.send_replace(Arrived::Until(self.content.bytes));
    }
}
