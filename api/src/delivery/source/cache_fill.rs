//! Large objects of a remote store: fetched once into a local file, which all requests read while it grows.

use std::{fs::File, io, os::unix::fs::FileExt, path::PathBuf, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use safelight_blobs::{BlobError, BlobStream, Blobs};
use safelight_domain::{ContentHash, ContentHasher};
use tokio::sync::watch;

use super::{
    bounded_blocking::{BoundedBlocking, patience},
    counters,
    disk::{Disk, Unfinished},
    file::{Arrived, Local},
    known::KnownObjects,
    object::Tier,
    optional_tier::OptionalTier,
    stored::StoredObject,
};

/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 256 << 10;

/// How long one write may take. Requests wait for it already, so it gets longer than a look-up.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// How often a read that breaks off is resumed.
const RESUMES: u32 = 3;

/// Where an object is written.
enum Target {
    /// In the disk cache, which keeps it.
    Kept(Unfinished),
    /// In a file without a name, which is deleted with its last reader.
    Passing,
}

/// An object that is being fetched.
struct CacheFill {
    filler: Arc<Filler>,
    object: StoredObject,
    file: Arc<File>,
    target: Target,
    progress: watch::Sender<Arrived>,
    hasher: ContentHasher,
    written: u64,
}

/// Why a fill stops.
enum Stopped {
    /// The store broke off; the read may be resumed.
    Store(BlobError),
    /// The disk failed.
    Disk(io::Error),
}

/// The disk tier: a failure of it fails no read.
pub type DiskTier = OptionalTier<Arc<Disk>>;

/// Fetches large objects into local files.
pub struct Filler {
    blobs: Blobs,
    /// The disk cache, which keeps what fits.
    pub disk: Option<DiskTier>,
    /// Where objects go that the disk cache does not keep.
    spool: PathBuf,
    /// For all work on this machine's disk.
    pub blocking: BoundedBlocking,
    /// Learns which objects were right.
    pub known: KnownObjects,
}

impl Filler {
    /// Over `blobs`, into `disk` or files without a name in `spool`.
    pub fn new(blobs: Blobs, disk: Option<DiskTier>, spool: PathBuf) -> Self {
        let (blocking, known) = (BoundedBlocking::default(), KnownObjects::default());
        Self { blobs, disk, spool, blocking, known }
    }

    /// Starts to fetch an object; its first bytes can be read as soon as they have arrived. An error if it
    /// cannot be written anywhere.
    pub async fn begin(
        self: &Arc<Self>,
        object: &StoredObject,
        stream: BlobStream,
    ) -> io::Result<(Local, Tier)> {
        let (file, target, tier) = if let Some((file, new)) = self.kept(object).await {
            (file, Target::Kept(new), Tier::Store)
        } else {
            let spool = self.spool.clone();
            let passing = move || {
                std::fs::create_dir_all(&spool)?;
                tempfile::tempfile_in(spool)
            };
            (self.blocking.run(patience(0), passing).await?, Target::Passing, Tier::Direct)
        };
        let (progress, arriving) = watch::channel(Arrived::Until(0));
        let local = Local::arriving(file.try_clone()?, arriving);
        let cache_fill = CacheFill {
            filler: self.clone(),
            object: object.clone(),
            file: Arc::new(file),
            target,
            progress,
            hasher: ContentHasher::default(),
            written: 0,
        };
        tokio::spawn(cache_fill.run(stream));
        Ok((local, tier))
    }

    /// A file of the disk cache to write to, if the cache takes the object.
    async fn kept(&self, object: &StoredObject) -> Option<(File, Unfinished)> {
        let side = self.disk.as_ref().filter(|side| side.tier.takes(object.bytes))?;
        let disk = side.usable()?.clone();
        let make = move || {
            let new = disk.begin()?;
            Ok((new.create()?, new))
        };
        side.noted(self.blocking.run(patience(0), make).await)
    }
}

impl CacheFill {
    async fn run(mut self, mut stream: BlobStream) {
        for attempt in 0.. {
            match self.take(stream).await {
                Ok(()) if self.written == self.object.bytes => return self.finish().await,
                Ok(()) if self.is_unwanted() => return,
                Ok(()) => {
                    tracing::warn!(path = %self.object.key.path(), "a read of a blob broke off");
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
            let rest = self.written..self.object.bytes;
            match self.filler.blobs.stream_range(&self.object.key, rest).await {
                Ok(resumed) => stream = resumed,
                Err(_) => break,
            }
        }
        self.progress.send_replace(Arrived::Never);
        // Dropping the target deletes a file, on a disk that may hang.
        let target = self.target;
        let remove = move || {
            drop(target);
            Ok(())
        };
        let _ = self.filler.blocking.run(patience(0), remove).await;
    }

    /// Whether the file has no reader and is not kept.
    fn is_unwanted(&self) -> bool {
        matches!(self.target, Target::Passing) && self.progress.receiver_count() == 0
    }

    /// Writes what arrives, until it ends or no client wants it any more.
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
        let written = self.filler.blocking.run(WRITE_PATIENCE, write).await;
        self.hasher = written.map_err(Stopped::Disk)?;
        self.written += count;
        self.progress.send_replace(Arrived::Until(self.written));
        Ok(())
    }

    /// Notes that the disk cache failed, or logs that the spool folder did, which is no tier.
    fn cannot_be_kept(&self, error: &io::Error) {
        if let (Target::Kept(_), Some(side)) = (&self.target, &self.filler.disk) {
            side.failed(error);
        } else {
            tracing::warn!(%error, "a large object cannot be written to a local file");
        }
    }

    async fn finish(self) {
        let hash: ContentHash = self.hasher.finish();
        if hash != self.object.sha256 {
            self.object.damaged("damaged");
            self.filler.known.note_damaged(&self.object);
            self.progress.send_replace(Arrived::Damaged);
            return;
        }
        self.filler.known.note_read(&self.object);
        if let (Target::Kept(new), Some(side)) = (self.target, &self.filler.disk) {
            let disk = side.tier.clone();
            let StoredObject { cached, bytes, .. } = self.object;
            let finish = move || disk.finish(&cached, bytes, &new);
            side.noted(self.filler.blocking.run(patience(0), finish).await);
        }
        self.progress.send_replace(Arrived::Whole);
    }
}
