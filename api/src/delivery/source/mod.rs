//! Where bytes come from: tiers of caches, and the store behind them.
//!
//! ```text
//! small objects    memory ─▶ [ disk ─▶ shared ─▶ store ]      one flight per process and object
//! large objects    file that somebody reads already ─▶ [ disk ─▶ store ]
//! ```
//!
//! What is in brackets runs once however many ask. An object is known by its owner and the hash of its
//! content ([`CacheKey`]), whichever tier or flight it is in, and every tier but the first is checked
//! against that hash. `disk` is only in front of a remote store; `shared`
//! only where it is configured. A tier that fails is left out (see [`health`]); only the store's own
//! failure is a failure of the read.

mod bounded_blocking;
mod cache_fill;
mod counters;
mod disk;
mod file;
mod health;
mod memory;
mod shared;
mod single_flight;

use bounded_blocking as errands;
use cache_fill as arrival;
use single_flight as flight;

use std::{
    collections::HashMap,
    fs::File,
    io,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use axum::{BoxError, body::Body, http::HeaderValue};
use bytes::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use safelight_blobs::{BlobContent, BlobError, BlobKey, BlobStream, Blobs, OpenBlob};
use safelight_config::Config;
use safelight_domain::{CacheKey, ContentHash, ContentHasher, Owner};
use safelight_shared_cache::SharedCache;

pub use counters::TierCounters;
pub use flight::{Flights, Landed};
pub use health::{Health, PATIENCE};

use disk::Disk;
use errands::{Errands, patience};
use file::Local;
use memory::{Memory, QueueCapacity};
use shared::{Shared, Turn};

/// An object that can be read: where it lies, and what must come out.
#[derive(Debug, Clone)]
pub struct Content {
    /// Its name in the store, where equal bytes are one.
    pub key: BlobKey,
    /// By what everything else here knows it, where those of two owners are not.
    pub cached: CacheKey,
    /// The hash of its bytes.
    pub sha256: ContentHash,
    /// How many there are.
    pub bytes: u64,
}

/// Why an object cannot be read. All who waited for it learn the same.
#[derive(Debug, Clone)]
pub enum ReadError {
    /// The store has it not, or not as it should be.
    Damaged(&'static str),
    /// The store failed.
    Store(Arc<BlobError>),
    /// Reading it panicked.
    Panicked,
}

/// Which part had an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// This process's memory.
    Memory,
    /// This machine's disk.
    Disk,
    /// The engine that all nodes share.
    Shared,
    /// The store; it is kept in the tiers above.
    Store,
    /// The store, whose file is read as it is.
    Direct,
}

/// What a read came to, for `Cache-Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Provenance {
    /// Who had it.
    pub tier: Tier,
    /// Whether another request fetched it.
    pub collapsed: bool,
}

impl Provenance {
    /// The member of `Cache-Status` (RFC 9211).
    pub const fn cache_status(self) -> HeaderValue {
        HeaderValue::from_static(match (self.tier, self.collapsed) {
            (Tier::Memory, _) => "safelight; hit; detail=memory",
            (Tier::Disk, false) => "safelight; hit; detail=disk",
            (Tier::Shared, false) => "safelight; hit; detail=shared",
            (Tier::Store, false) => "safelight; fwd=uri-miss; stored; detail=store",
            (Tier::Direct, false) => "safelight; fwd=uri-miss; detail=store",
            (Tier::Disk, true) => "safelight; fwd=uri-miss; collapsed; detail=disk",
            (Tier::Shared, true) => "safelight; fwd=uri-miss; collapsed; detail=shared",
            (Tier::Store | Tier::Direct, true) => {
                "safelight; fwd=uri-miss; collapsed; detail=store"
            }
        })
    }
}

/// An object that is at hand.
#[derive(Clone)]
pub enum Held {
    /// All of it in memory.
    Whole(Bytes),
    /// In a local file, or on its way into one.
    File(Arc<Local>),
    /// In the store only, to be read by each client for itself.
    Remote(Blobs, Box<Content>),
}

impl Held {
    /// The bytes of `span`. Nothing is read before the client takes it.
    pub fn body(&self, span: Range<u64>) -> Body {
        match self {
            Self::Whole(bytes) => slice(bytes, &span).map_or_else(Body::empty, Body::from),
            Self::File(local) => Body::from_stream(local.clone().stream(span)),
            Self::Remote(blobs, content) => {
                let (blobs, content) = (blobs.clone(), Content::clone(content));
                Body::from_stream(stream::once(remote(blobs, content, span)).try_flatten())
            }
        }
    }
}

type Pieces = BoxStream<'static, Result<Bytes, BoxError>>;

/// What the store has in `span`, read for one client.
async fn remote(blobs: Blobs, content: Content, span: Range<u64>) -> Result<Pieces, BoxError> {
    counters::store_read();
    let whole = span == (0..content.bytes);
    let stream = blobs.stream_range(&content.key, span).await?;
    Ok(if whole { checked(stream, content) } else { stream.map_err(BoxError::from).boxed() })
}

/// All of an object, as long as it is right: the last that comes is held back until that is known.
fn checked(stream: BlobStream, content: Content) -> Pieces {
    let begin = (stream, ContentHasher::default(), None::<Bytes>);
    let next =
        move |(mut stream, mut hasher, mut held): (BlobStream, ContentHasher, Option<Bytes>)| {
            let content = content.clone();
            async move {
                while let Some(next) = stream.try_next().await? {
                    hasher.update(&next);
                    if let Some(sent) = held.replace(next) {
                        return Ok(Some((sent, (stream, hasher, held))));
                    }
                }
                let Some(last) = held else { return Ok(None) };
                if hasher.clone().finish() != content.sha256 {
                    content.damaged("damaged");
                    return Err("the object is damaged".into());
                }
                Ok(Some((last, (stream, hasher, None))))
            }
        };
    stream::try_unfold(begin, next).boxed()
}

fn slice(bytes: &Bytes, span: &Range<u64>) -> Option<Bytes> {
    let (start, end) = (usize::try_from(span.start).ok()?, usize::try_from(span.end).ok()?);
    (start <= end && end <= bytes.len()).then(|| bytes.slice(start..end))
}

/// All tiers of a process. Clones share them.
#[derive(Clone)]
pub struct Tiers(Arc<Inner>);

struct Inner {
    blobs: Blobs,
    memory: Memory,
    memory_counters: TierCounters,
    disk: Option<Side<Arc<Disk>>>,
    shared: Option<Side<Shared>>,
    /// Where large objects of a remote store arrive that the disk tier does not keep.
    spool: PathBuf,
    /// Small objects on their way into memory.
    loads: Flights<CacheKey, Result<(Bytes, Tier), ReadError>>,
    /// Large objects being opened.
    opens: Flights<CacheKey, Result<(Held, Provenance), ReadError>>,
    /// Files that somebody reads just now, and where they were found.
    open: Mutex<HashMap<CacheKey, (Weak<Local>, Tier)>>,
    /// What there is to do on this machine's disk.
    errands: Errands,
}

/// A tier that reads can do without.
struct Side<T> {
    tier: T,
    health: Health,
    counters: TierCounters,
}

impl<T> Side<T> {
    fn new(tier: T, part: &'static str, name: &'static str) -> Self {
        Self { tier, health: Health::new(part), counters: TierCounters::new(name) }
    }

    /// The tier, unless it is left alone just now.
    fn usable(&self) -> Option<&T> {
        if self.health.is_usable() {
            return Some(&self.tier);
        }
        self.counters.skipped.increment(1);
        None
    }

    /// Notes how an answer came out: what it found, or nothing where it failed.
    fn heard<R, E: std::fmt::Display>(&self, answer: Result<R, E>) -> Option<R> {
        match answer {
            Ok(answer) => {
                self.health.works();
                Some(answer)
            }
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    /// Notes a failure.
    fn failed(&self, error: &dyn std::fmt::Display) {
        self.counters.errors.increment(1);
        self.health.failed(error);
    }
}

/// A part of an object so small that the whole is not worth fetching: a quarter.
const SMALL_PART: u64 = 4;

impl Tiers {
    /// The tiers that `config` asks for, in front of `blobs`.
    pub fn new(config: &Config, blobs: &Blobs, shared_cache: Option<SharedCache>) -> Self {
        let disk = (!blobs.is_local() && config.disk_cache_bytes > 0)
            .then(|| Disk::open(&config.data_dir.join("cache"), config.disk_cache_bytes))
            .and_then(|disk| match disk {
                Ok(disk) => Some(Side::new(disk, "the disk cache", "disk")),
                Err(error) => {
                    tracing::warn!(%error, "no disk cache: cannot use the folder `cache` in data_dir");
                    None
                }
            });
        let shared =
            shared_cache.map(|cache| Side::new(Shared::new(cache), "the shared cache", "shared"));
        let memory = Memory::new(config.memory_cache_bytes);
        Self(Arc::new(Inner { memory, disk, shared, ..Inner::bare(config, blobs) }))
    }

    /// The store alone.
    pub fn bare(config: &Config, blobs: &Blobs) -> Self {
        Self(Arc::new(Inner::bare(config, blobs)))
    }

    /// Brings an object to hand, of which no more than `wanted` will be read.
    pub async fn open(
        &self,
        content: &Content,
        wanted: Range<u64>,
    ) -> Result<(Held, Provenance), ReadError> {
        if let Some(found) = self.at_hand(content) {
            return Ok(found);
        }
        let inner = &self.0;
        inner.memory_counters.misses.increment(1);
        if inner.loads.is_under_way(&content.cached) || inner.memory.takes(content.bytes) {
            self.load(content).await
        } else {
            self.large(content, wanted).await
        }
    }

    /// An object that is in memory.
    pub fn at_hand(&self, content: &Content) -> Option<(Held, Provenance)> {
        let bytes = self.0.memory.get(&content.cached)?;
        self.0.memory_counters.hits.increment(1);
        Some((Held::Whole(bytes), Provenance { tier: Tier::Memory, collapsed: false }))
    }

    /// Drops objects of an image that is gone: from memory at once, from the disk in the background. From
    /// the shared tier the job removes them that deletes the image.
    pub fn forget(&self, objects: Vec<CacheKey>) {
        for object in &objects {
            self.0.memory.forget(object);
        }
        if self.0.disk.is_none() || objects.is_empty() {
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

    /// A small object: read whole, once for all who ask.
    async fn load(&self, content: &Content) -> Result<(Held, Provenance), ReadError> {
        let (inner, wanted) = (self.0.clone(), content.clone());
        let landed = self.0.loads.join(content.cached, || {
            let room = inner.memory.room(wanted.bytes);
            async move { inner.fetch(&wanted, room).await }
        });
        let (value, provenance) = unpack(landed.await)?;
        Ok((Held::Whole(value), provenance))
    }

    /// A large object: one open file for all who read it at the same time.
    async fn large(
        &self,
        content: &Content,
        wanted: Range<u64>,
    ) -> Result<(Held, Provenance), ReadError> {
        let small = wanted.end - wanted.start < content.bytes / SMALL_PART;
        if small && !self.0.blobs.is_local() {
            return Ok(match self.0.near(content).await {
                // The end of a file that has only begun to arrive is sooner had from the store.
                Some((local, provenance)) if local.has(&wanted) => (Held::File(local), provenance),
                _ => self.0.remote(content),
            });
        }
        let (inner, wanted) = (self.0.clone(), content.clone());
        let landed = self.0.opens.join(content.cached, || async move { inner.open(&wanted).await });
        let Landed { value, collapsed } = landed.await;
        let (held, found) = value.ok_or(ReadError::Panicked)??;
        Ok((held, Provenance { collapsed: collapsed || found.collapsed, ..found }))
    }
}

fn unpack<T>(landed: Landed<Result<(T, Tier), ReadError>>) -> Result<(T, Provenance), ReadError> {
    let (value, tier) = landed.value.ok_or(ReadError::Panicked)??;
    Ok((value, Provenance { tier, collapsed: landed.collapsed }))
}

impl Inner {
    fn bare(config: &Config, blobs: &Blobs) -> Self {
        Self {
            blobs: blobs.clone(),
            memory: Memory::new(0),
            memory_counters: TierCounters::new("memory"),
            disk: None,
            shared: None,
            spool: config.data_dir.join("spool"),
            loads: Flights::default(),
            opens: Flights::default(),
            open: Mutex::default(),
            errands: Errands::default(),
        }
    }

    /// The tiers behind memory, one after the other.
    async fn fetch(
        self: &Arc<Self>,
        content: &Content,
        room: QueueCapacity,
    ) -> Result<(Bytes, Tier), ReadError> {
        let cached = content.cached;
        // A flight that has just landed may have left it here.
        if let Some(bytes) = self.memory.get(&cached) {
            return Ok((bytes, Tier::Memory));
        }
        if let Some(bytes) = self.read_disk(content).await {
            return Ok((self.memory.keep(cached, bytes, room), Tier::Disk));
        }
        let turn = self.look_shared(content).await;
        if let Some(Turn::Found(bytes)) = turn {
            let bytes = self.memory.keep(cached, bytes, room);
            self.keep_on_disk(cached, &bytes).await;
            return Ok((bytes, Tier::Shared));
        }
        let read = match (turn, &self.shared) {
            (Some(Turn::Ours(token)), Some(side)) => {
                let read = side.tier.in_turn(&cached, &token, self.read_store(content)).await;
                side.heard(match &read {
                    Ok(bytes) => side.tier.give(&cached, bytes, &token).await,
                    Err(_) => side.tier.end_turn(&cached, &token).await,
                });
                read
            }
            _ => self.read_store(content).await,
        };
        let bytes = self.memory.keep(cached, read?, room);
        self.keep_on_disk(cached, &bytes).await;
        Ok((bytes, Tier::Store))
    }

    async fn read_disk(&self, content: &Content) -> Option<Bytes> {
        let Content { cached, sha256, bytes, .. } = *content;
        let read = move |disk: &Disk| disk.read(&cached, &sha256, bytes);
        let (side, found) = self.ask_disk(bytes, read).await?;
        side.counters.count(found.is_some());
        found
    }

    /// What the disk tier says to `question`; nothing if it is left out, fails, or takes longer than it may
    /// for `bytes` bytes.
    async fn ask_disk<T: Send + 'static>(
        &self,
        bytes: u64,
        question: impl FnOnce(&Disk) -> io::Result<T> + Send + 'static,
    ) -> Option<(&Side<Arc<Disk>>, T)> {
        let side = self.disk.as_ref().filter(|side| side.tier.takes(bytes))?;
        let disk = side.usable()?.clone();
        let answer = self.errands.run(patience(bytes), move || question(&disk)).await;
        Some((side, side.heard(answer)?))
    }

    async fn look_shared(&self, content: &Content) -> Option<Turn> {
        let side = self.shared.as_ref().filter(|_| Shared::takes(content.bytes))?;
        let turn = side.heard(side.usable()?.look(content).await)?;
        side.counters.count(matches!(turn, Turn::Found(_)));
        Some(turn)
    }

    async fn read_store(&self, content: &Content) -> Result<Bytes, ReadError> {
        counters::store_read();
        match self.blobs.read(&content.key, content.bytes).await {
            Ok(bytes) if ContentHash::of(&bytes) == content.sha256 => Ok(bytes),
            Ok(_) => Err(content.damaged("damaged")),
            Err(error) => Err(content.failed(error)),
        }
    }

    /// Keeps what was read, for after a restart. Part of the flight, so that writes are as few as
    /// reads; a disk that is slow holds up those who wait for this object, no others.
    async fn keep_on_disk(&self, object: CacheKey, bytes: &Bytes) {
        let kept = bytes.clone();
        self.ask_disk(bytes.len() as u64, move |disk| disk.keep(&object, &kept)).await;
    }

    /// A large object that somebody reads just now, or that is on the disk.
    async fn near(&self, content: &Content) -> Option<(Arc<Local>, Provenance)> {
        if let Some((local, tier)) = self.opened(&content.cached) {
            // What is on the disk would have been found there all the same.
            return Some((local, Provenance { tier, collapsed: tier != Tier::Disk }));
        }
        let local = Arc::new(Local::whole(self.file_on_disk(content).await?));
        self.remember(content, &local, Tier::Disk);
        Some((local, Provenance { tier: Tier::Disk, collapsed: false }))
    }

    /// A large object in the store, to be read as it is sent.
    fn remote(&self, content: &Content) -> (Held, Provenance) {
        let held = Held::Remote(self.blobs.clone(), Box::new(content.clone()));
        (held, Provenance { tier: Tier::Direct, collapsed: false })
    }

    /// Lets others read a file for as long as anybody does.
    fn remember(&self, content: &Content, local: &Arc<Local>, tier: Tier) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, (local, _)| local.strong_count() > 0);
        open.insert(content.cached, (Arc::downgrade(local), tier));
    }

    /// A file that somebody reads just now, and where it was found.
    fn opened(&self, object: &CacheKey) -> Option<(Arc<Local>, Tier)> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (local, tier) = open.get(object)?;
        Some((local.upgrade()?, *tier))
    }

    /// Opens a large object.
    async fn open(self: &Arc<Self>, content: &Content) -> Result<(Held, Provenance), ReadError> {
        if let Some((local, provenance)) = self.near(content).await {
            return Ok((Held::File(local), provenance));
        }
        counters::store_read();
        let opened = self.blobs.open_blob(&content.key).await;
        let OpenBlob { bytes, content: source } = opened.map_err(|error| content.failed(error))?;
        if bytes != content.bytes {
            return Err(content.damaged("of the wrong size"));
        }
        let (local, tier) = match source {
            BlobContent::File(file) => (Local::whole(file), Tier::Direct),
            BlobContent::Stream(stream) => match arrival::begin(self, content, stream).await {
                Ok(begun) => begun,
                Err(error) => {
                    tracing::warn!(%error, "no place for a large object, which is sent as it comes");
                    return Ok(self.remote(content));
                }
            },
        };
        let local = Arc::new(local);
        self.remember(content, &local, tier);
        Ok((Held::File(local), Provenance { tier, collapsed: false }))
    }

    async fn file_on_disk(&self, content: &Content) -> Option<File> {
        let Content { cached, sha256, bytes, .. } = *content;
        let open = move |disk: &Disk| disk.open_file(&cached, &sha256, bytes);
        let (side, found) = self.ask_disk(bytes, open).await?;
        side.counters.count(found.is_some());
        found
    }
}

impl Content {
    /// What lies under `key` in the store, as `owner`'s.
    pub fn new(owner: &Owner, key: BlobKey, sha256: ContentHash, bytes: u64) -> Self {
        Self { cached: CacheKey::of(owner, &sha256), key, sha256, bytes }
    }

    fn damaged(&self, how: &'static str) -> ReadError {
        tracing::error!(path = %self.key.path(), "a blob is {how}");
        ReadError::Damaged(how)
    }

    /// The database says that it is there, and how large it is.
    fn failed(&self, error: BlobError) -> ReadError {
        match error {
            BlobError::NotFound => self.damaged("missing"),
            BlobError::TooLarge { .. } => self.damaged("of the wrong size"),
            error => ReadError::Store(Arc::new(error)),
        }
    }
}
