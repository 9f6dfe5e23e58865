//! Large objects of a remote store: fetched once into a local file, which all who want them read
//! while it grows.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use safelight_common::{
    blobs::{BlobError, BlobStream},
    blocking::blocking,
    domain::{ContentHash, ContentHasher},
};
use tokio::sync::watch;

use super::{
    Content, Inner, counters,
    disk::{Disk, Unfinished},
    file::{Arrived, Local},
};

/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 256 << 10;

/// How often a store that breaks off is asked for the rest.
const RESUMES: u32 = 3;

/// Where an object arrives.
enum Place {
    /// In the disk cache, which keeps it.
    Kept(Arc<Disk>, Unfinished),
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

/// Begins to fetch an object; its first bytes can be read as soon as they have come.
pub(super) async fn begin(
    inner: &Arc<Inner>,
    content: &Content,
    stream: BlobStream,
) -> io::Result<Local> {
    let (file, place) = if let Some(kept) = kept(inner, content).await {
        kept
    } else {
        let spool = inner.spool.clone();
        let passing = blocking(move || {
            std::fs::create_dir_all(&spool)?;
            tempfile::tempfile_in(spool)
        });
        (passing.await?, Place::Passing)
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
    Ok(local)
}

/// A file of the disk cache to write to, if that takes the object.
async fn kept(inner: &Inner, content: &Content) -> Option<(File, Place)> {
    let side = inner.disk.as_ref().filter(|side| side.tier.takes(content.bytes))?;
    let disk = side.usable()?.clone();
    let begun = disk.clone();
    let made = blocking(move || {
        let new = begun.begin()?;
        Ok((new.create()?, new))
    });
    let (file, new) = side.heard(made.await)?;
    Some((file, Place::Kept(disk, new)))
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
                Err(error) => tracing::warn!(%error, "a read of a blob broke off"),
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
    }

    /// Whether nobody reads what nobody will keep.
    fn is_unwanted(&self) -> bool {
        matches!(self.place, Place::Passing) && self.progress.receiver_count() == 0
    }

    /// Writes what comes, until it ends or is not wanted any more.
    async fn take(&mut self, mut stream: BlobStream) -> Result<(), BlobError> {
        let mut buffer = BytesMut::new();
        while let Some(chunk) = stream.try_next().await? {
            buffer.extend_from_slice(&chunk);
            if buffer.len() >= WRITE_BYTES {
                self.write(buffer.split().freeze()).await?;
            }
            if self.is_unwanted() {
                return Ok(());
            }
        }
        Ok(self.write(buffer.freeze()).await?)
    }

    async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let (count, file, at) = (bytes.len() as u64, self.file.clone(), self.written);
        let mut hasher = self.hasher.clone();
        self.hasher = blocking(move || {
            hasher.update(&bytes);
            file.write_all_at(&bytes, at)?;
            Ok(hasher)
        })
        .await?;
        self.written += count;
        // The last bytes are held back until all of them are known to be right: whoever reads a
        // damaged object gets a broken connection, never a whole answer.
        let safe = self.written.min(self.content.bytes.saturating_sub(1));
        self.progress.send_replace(Arrived::Until(safe));
        Ok(())
    }

    async fn finish(self) {
        let hash: ContentHash = self.hasher.finish();
        if hash != self.content.sha256 {
            self.content.damaged("damaged");
            self.progress.send_replace(Arrived::Never);
            return;
        }
        if let (Place::Kept(disk, new), Some(side)) = (self.place, &self.inner.disk) {
            let bytes = self.content.bytes;
            side.heard(blocking(move || disk.finish(&hash, bytes, &new)).await);
        }
        self.progress.send_replace(Arrived::Until(self.content.bytes));
    }
}
