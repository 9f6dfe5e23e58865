//! The tiers of caches, in the order in which a read asks them.

use std::{
    collections::HashMap,
    fs::File,
    io,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use safelight_blobs::{BlobContent, BlobError, Blobs, OpenBlob};
use safelight_domain::{CacheKey, ContentHash};
use safelight_shared_cache::SharedCache;

use super::{
    bounded_blocking::patience,
    cache_fill::{DiskTier, Filler},
    counters::{self, TierCounters},
    disk::Disk,
    file::{Arrived, Local},
    memory::{Memory, Reservation},
    object::{OpenObject, Provenance, RemoteObject, Tier},
    optional_tier::OptionalTier,
    shared::{Shared, Turn},
    single_flight::{FlightResult, SingleFlight},
    stored::{ReadError, StoredObject},
};

/// All tiers of a process. Clones share them.
#[derive(Clone)]
pub struct Tiers(Arc<Inner>);

struct Inner {
    blobs: Blobs,
    memory: Memory,
    memory_counters: TierCounters,
    shared: Option<OptionalTier<Shared>>,
    /// Small objects on their way into memory.
    loads: SingleFlight<CacheKey, Result<(Bytes, Tier), ReadError>>,
    /// Large objects being opened.
    opens: SingleFlight<CacheKey, Result<(OpenObject, Provenance), ReadError>>,
    /// Files that are being read, and where they were found.
    open: Mutex<HashMap<CacheKey, (Weak<Local>, Tier)>>,
    /// Writes large objects of a remote store into local files; owns the disk tier.
    filler: Arc<Filler>,
}

/// A part of an object so small that the whole is not worth fetching: a quarter.
const SMALL_PART: u64 = 4;

/// How long a directory may take until a file of `bytes` bytes is hashed. Less than a megabyte per second counts as
/// stalled.
fn hashing_patience(bytes: u64) -> Duration {
    Duration::from_secs(30 + (bytes >> 20))
}

/// The sizes of the tiers of one node.
#[derive(Debug, Clone, Copy)]
pub struct TierSizes {
    /// The bytes that memory may hold.
    pub memory_bytes: u64,
    /// The bytes that the disk may hold.
    pub disk_bytes: u64,
}

impl Tiers {
    /// Tiers of these sizes in front of `blobs`. A size of 0 turns a tier off.
    pub fn new(
        data_dir: &Path,
        sizes: TierSizes,
        blobs: &Blobs,
        shared_cache: Option<SharedCache>,
    ) -> Self {
        let disk = (!blobs.is_local() && sizes.disk_bytes > 0)
            .then(|| Disk::open(&data_dir.join("cache"), sizes.disk_bytes))
            .and_then(|disk| match disk {
                Ok(disk) => Some(OptionalTier::new(disk, "use the disk cache", "disk")),
                Err(error) => {
                    tracing::warn!(%error, "no disk cache: cannot use the folder `cache` in data_dir");
                    None
                }
            });
        let shared = shared_cache
            .map(|cache| OptionalTier::new(Shared::new(cache), "use the shared cache", "shared"));
        let memory = Memory::new(sizes.memory_bytes);
        Self(Arc::new(Inner { memory, shared, ..Inner::new(data_dir, blobs, disk) }))
    }

    /// The store alone.
    pub fn bare(data_dir: &Path, blobs: &Blobs) -> Self {
        Self(Arc::new(Inner::new(data_dir, blobs, None)))
    }

    /// Makes an object ready to be sent, of which no more than `wanted` will be read.
    pub async fn open(
        &self,
        object: &StoredObject,
        wanted: Range<u64>,
    ) -> Result<(OpenObject, Provenance), ReadError> {
        if let Some(found) = self.try_cached(object) {
            return Ok(found);
        }
        let inner = &self.0;
        inner.memory_counters.misses.increment(1);
        if inner.loads.is_under_way(&object.cached) || inner.memory.takes(object.bytes) {
            self.load(object).await
        } else {
            self.large(object, wanted).await
        }
    }

    /// An object, if it is in memory.
    pub fn try_cached(&self, object: &StoredObject) -> Option<(OpenObject, Provenance)> {
        let bytes = self.0.memory.get(&object.cached)?;
        self.0.memory_counters.hits.increment(1);
        Some((OpenObject::Whole(bytes), Provenance { tier: Tier::Memory, collapsed: false }))
    }

    /// Drops objects of a deleted image: from memory immediately, from the disk in the background. The delete
    /// job removes them from the shared tier.
    pub fn forget(&self, objects: Vec<CacheKey>) {
        for object in &objects {
            self.0.memory.forget(object);
        }
        if self.0.filler.disk.is_none() || objects.is_empty() {
            return;
        }
        let inner = self.0.clone();
        tokio::spawn(async move {
            let forget = move |disk: &Disk| objects.iter().try_for_each(|one| disk.forget(one));
            inner.ask_disk(0, forget).await;
        });
    }

    /// Bytes that are in memory for delivery.
    pub fn bytes_in_memory(&self) -> u64 {
        self.0.memory.live()
    }

    /// A small object: read whole, once for all requests.
    async fn load(&self, object: &StoredObject) -> Result<(OpenObject, Provenance), ReadError> {
        let (inner, wanted) = (self.0.clone(), object.clone());
        let result = self.0.loads.join(object.cached, || {
            let reserved = inner.memory.reserve(wanted.bytes);
            async move { inner.fetch(&wanted, reserved).await }
        });
        let (value, provenance) = unpack(result.await)?;
        Ok((OpenObject::Whole(value), provenance))
    }

    /// A large object: one open file for all requests at the same time.
    async fn large(
        &self,
        object: &StoredObject,
        wanted: Range<u64>,
    ) -> Result<(OpenObject, Provenance), ReadError> {
        let small = wanted.end - wanted.start < object.bytes / SMALL_PART;
        if small && self.0.filler.known.is_read(object) {
            return Ok(match self.0.near(object).await {
                // A part of a file that is still arriving is read faster from the store.
                Some((local, provenance)) if local.arrived() == Arrived::Whole => {
                    (OpenObject::File(local), provenance)
                }
                _ => self.0.remote(object),
            });
        }
        let (inner, wanted) = (self.0.clone(), object.clone());
        let result = self.0.opens.join(object.cached, || async move { inner.open(&wanted).await });
        let FlightResult { value, collapsed } = result.await;
        let (held, found) = value.ok_or(ReadError::Panicked)??;
        Ok((held, Provenance { collapsed: collapsed || found.collapsed, ..found }))
    }
}

fn unpack<T>(
    result: FlightResult<Result<(T, Tier), ReadError>>,
) -> Result<(T, Provenance), ReadError> {
    let (value, tier) = result.value.ok_or(ReadError::Panicked)??;
    Ok((value, Provenance { tier, collapsed: result.collapsed }))
}

impl Inner {
    fn new(data_dir: &Path, blobs: &Blobs, disk: Option<DiskTier>) -> Self {
        let spool = data_dir.join("spool");
        Self {
            blobs: blobs.clone(),
            memory: Memory::new(0),
            memory_counters: TierCounters::new("memory"),
            shared: None,
            loads: SingleFlight::default(),
            opens: SingleFlight::default(),
            open: Mutex::default(),
            filler: Arc::new(Filler::new(blobs.clone(), disk, spool)),
        }
    }

    /// The tiers behind memory, one after the other.
    async fn fetch(
        self: &Arc<Self>,
        object: &StoredObject,
        reserved: Reservation,
    ) -> Result<(Bytes, Tier), ReadError> {
        let cached = object.cached;
        // A load that has just ended may have left it here.
        if let Some(bytes) = self.memory.get(&cached) {
            return Ok((bytes, Tier::Memory));
        }
        if let Some(bytes) = self.read_disk(object).await {
            return Ok((self.memory.keep(cached, bytes, reserved), Tier::Disk));
        }
        let turn = self.look_shared(object).await;
        if let Some(Turn::Found(bytes)) = turn {
            let bytes = self.memory.keep(cached, bytes, reserved);
            self.keep_on_disk(cached, &bytes).await;
            return Ok((bytes, Tier::Shared));
        }
        let read = match (turn, &self.shared) {
            (Some(Turn::Ours(token)), Some(side)) => {
                let read = side.tier.in_turn(&cached, &token, self.read_store(object)).await;
                side.noted(match &read {
                    Ok(bytes) => side.tier.give(&cached, bytes, &token).await,
                    Err(_) => side.tier.end_turn(&cached, &token).await,
                });
                read
            }
            _ => self.read_store(object).await,
        };
        let bytes = self.memory.keep(cached, read?, reserved);
        self.keep_on_disk(cached, &bytes).await;
        Ok((bytes, Tier::Store))
    }

    async fn read_disk(&self, object: &StoredObject) -> Option<Bytes> {
        let StoredObject { cached, sha256, bytes, .. } = *object;
        let read = move |disk: &Disk| disk.read(&cached, &sha256, bytes);
        let (side, found) = self.ask_disk(bytes, read).await?;
        side.counters.count(found.is_some());
        found
    }

    /// The disk tier's answer; `None` if it is left out, fails, or takes too long for `bytes` bytes.
    async fn ask_disk<T: Send + 'static>(
        &self,
        bytes: u64,
        question: impl FnOnce(&Disk) -> io::Result<T> + Send + 'static,
    ) -> Option<(&DiskTier, T)> {
        let side = self.filler.disk.as_ref().filter(|side| side.tier.takes(bytes))?;
        let disk = side.usable()?.clone();
        let answer = self.filler.blocking.run(patience(bytes), move || question(&disk)).await;
        Some((side, side.noted(answer)?))
    }

    async fn look_shared(&self, object: &StoredObject) -> Option<Turn> {
        let side = self.shared.as_ref().filter(|_| Shared::takes(object.bytes))?;
        let turn = side.noted(side.usable()?.look(object).await)?;
        side.counters.count(matches!(turn, Turn::Found(_)));
        Some(turn)
    }

    /// Reads a small object from the store. Bytes may be damaged on their way, so the second answer decides.
    async fn read_store(&self, object: &StoredObject) -> Result<Bytes, ReadError> {
        match self.read_store_once(object).await {
            Err(ReadError::Damaged(_)) => self.read_store_once(object).await,
            read => read,
        }
    }

    async fn read_store_once(&self, object: &StoredObject) -> Result<Bytes, ReadError> {
        counters::store_read();
        match self.blobs.read(&object.key, object.bytes).await {
            Ok(bytes) if ContentHash::of(&bytes) == object.sha256 => Ok(bytes),
            Ok(_) => Err(object.damaged("damaged")),
            Err(error) => Err(object.failed(error)),
        }
    }

    /// Keeps what was read, for after a restart. Part of the load, so that writes are as few as
    /// reads; a slow disk delays only the requests for this object.
    async fn keep_on_disk(&self, object: CacheKey, bytes: &Bytes) {
        let kept = bytes.clone();
        self.ask_disk(bytes.len() as u64, move |disk| disk.keep(&object, &kept)).await;
    }

    /// A large object that is being read, or that is on the disk.
    async fn near(&self, object: &StoredObject) -> Option<(Arc<Local>, Provenance)> {
        if let Some((local, tier)) = self.opened(&object.cached) {
            // An object on the disk would have been found there without the other reader.
            return Some((local, Provenance { tier, collapsed: tier != Tier::Disk }));
        }
        let local = Arc::new(Local::whole(self.file_on_disk(object).await?));
        self.remember(object, &local, Tier::Disk);
        Some((local, Provenance { tier: Tier::Disk, collapsed: false }))
    }

    /// A large object in the store, to be read as it is sent.
    fn remote(&self, object: &StoredObject) -> (OpenObject, Provenance) {
        let (blobs, known) = (self.blobs.clone(), self.filler.known.clone());
        let held =
            OpenObject::Remote(Box::new(RemoteObject { blobs, object: object.clone(), known }));
        (held, Provenance { tier: Tier::Direct, collapsed: false })
    }

    /// Lets other requests share a file for as long as one reads it.
    fn remember(&self, object: &StoredObject, local: &Arc<Local>, tier: Tier) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, (local, _)| local.strong_count() > 0);
        open.insert(object.cached, (Arc::downgrade(local), tier));
    }

    /// A file that is being read, and where it was found.
    fn opened(&self, object: &CacheKey) -> Option<(Arc<Local>, Tier)> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (local, tier) = open.get(object)?;
        let local = local.upgrade()?;
        // The readers of a file that did not arrive hold it until they notice.
        let is_lost = matches!(local.arrived(), Arrived::Damaged | Arrived::Never);
        (!is_lost).then_some((local, *tier))
    }

    /// Opens a large object. As in [`Self::read_store`], the second answer decides.
    async fn open(
        self: &Arc<Self>,
        object: &StoredObject,
    ) -> Result<(OpenObject, Provenance), ReadError> {
        match self.open_once(object).await {
            Err(ReadError::Damaged(_)) => self.open_once(object).await,
            opened => opened,
        }
    }

    async fn open_once(
        self: &Arc<Self>,
        object: &StoredObject,
    ) -> Result<(OpenObject, Provenance), ReadError> {
        let opened = match self.near(object).await {
            Some((local, provenance)) => (OpenObject::File(local), provenance),
            None => self.open_store(object).await?,
        };
        // A response that has begun can only be broken off. A rendition can be made again instead, and an object that
        // was found damaged before most likely still is.
        if object.is_rendition() || self.filler.known.is_suspect(object) {
            self.read_to_end(object, &opened.0).await?;
        }
        Ok(opened)
    }

    /// Waits until all of a large object was compared with its hash.
    async fn read_to_end(
        &self,
        object: &StoredObject,
        opened: &OpenObject,
    ) -> Result<(), ReadError> {
        match opened {
            OpenObject::Whole(_) => Ok(()),
            OpenObject::File(local) => match local.settled().await {
                Arrived::Whole => Ok(()),
                Arrived::Damaged => Err(ReadError::Damaged("damaged")),
                Arrived::Until(_) | Arrived::Never => {
                    Err(ReadError::Store(Arc::new(BlobError::Late)))
                }
            },
            OpenObject::Remote(_) => {
                counters::store_read();
                let read = self.blobs.hash(&object.key).await;
                let (hash, _) = read.map_err(|error| object.failed(error))?;
                if hash != object.sha256 {
                    self.filler.known.note_damaged(object);
                    return Err(object.damaged("damaged"));
                }
                self.filler.known.note_read(object);
                Ok(())
            }
        }
    }

    async fn open_store(
        self: &Arc<Self>,
        object: &StoredObject,
    ) -> Result<(OpenObject, Provenance), ReadError> {
        counters::store_read();
        let opened = self.blobs.open_blob(&object.key).await;
        let OpenBlob { bytes, content: source } = opened.map_err(|error| object.failed(error))?;
        if bytes != object.bytes {
            return Err(object.damaged("of the wrong size"));
        }
        let (local, tier) = match source {
            BlobContent::File(file) => {
                (Local::whole(self.checked_file(object, file).await?), Tier::Direct)
            }
            BlobContent::Stream(stream) => match self.filler.begin(object, stream).await {
                Ok(started) => started,
                Err(error) => {
                    tracing::warn!(%error, "no local file for a large object; it is streamed");
                    return Ok(self.remote(object));
                }
            },
        };
        let local = Arc::new(local);
        self.remember(object, &local, tier);
        Ok((OpenObject::File(local), Provenance { tier, collapsed: false }))
    }

    /// A file of a directory, once its content is known to be right. It is hashed when this process first opens it,
    /// and after every change.
    async fn checked_file(&self, object: &StoredObject, file: File) -> Result<File, ReadError> {
        let known = self.filler.known.clone();
        if known.knows_file(object, &file) {
            return Ok(file);
        }
        let hashed = object.clone();
        let check = move || Ok((known.check_file(&hashed, &file)?, file));
        match self.filler.blocking.run(hashing_patience(object.bytes), check).await {
            Ok((true, file)) => Ok(file),
            Ok((false, _)) => Err(object.damaged("damaged")),
            Err(error) => {
                tracing::warn!(%error, path = %object.key.path(), "cannot read a blob");
                Err(ReadError::Store(Arc::new(BlobError::Late)))
            }
        }
    }

    async fn file_on_disk(&self, object: &StoredObject) -> Option<File> {
        let StoredObject { cached, sha256, bytes, .. } = *object;
        let open = move |disk: &Disk| disk.open_file(&cached, &sha256, bytes);
        let (side, found) = self.ask_disk(bytes, open).await?;
        side.counters.count(found.is_some());
        found
    }
}
