//! Metadata of images in memory, so that most requests do not ask the database.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use moka::sync::Cache;
use safelight_domain::{Image, ImageId};
use safelight_store::{Reads, StoreError};
use safelight_telemetry::{DependencyHealth, NoAnswer};

use super::{
    image_view::ImageView,
    source::{SingleFlight, TierCounters, Tiers},
};
use crate::{
    http::{extract::PathId, problem::Problem, turns::Turns},
    presets::CurrentPresets,
};

/// Memory for cached metadata, in bytes.
const BOUND: u64 = 24 << 20;

/// How long the absence of an image is trusted, and what is known of a private one.
const NEGATIVE: Duration = Duration::from_secs(1);

/// How long metadata may be used while the database is unavailable.
const STALE: Duration = Duration::from_mins(10);

/// How long the database may take before cached metadata is used instead.
const PATIENCE: Duration = Duration::from_millis(250);

/// Images that are read from the database at the same time, half of the usual connections, and those that wait: anybody
/// can ask for ids that nobody has.
const READING: usize = 8;
const QUEUED: usize = 4096;

/// What is known of an image.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// The image; `None` if there is none.
    pub view: Option<Arc<ImageView>>,
    /// How it is known.
    pub freshness: Freshness,
}

impl Lookup {
    /// The image; a problem if `id` is none, or none any more.
    pub fn image(&self, id: ImageId) -> Result<&ImageView, Problem> {
        let view = self.view.as_deref().ok_or_else(|| ImageId::not_found(id))?;
        if view.discarded { Err(Problem::image_gone(view.deleted)) } else { Ok(view) }
    }
}

/// How far metadata can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Known from before, and still good.
    Cached,
    /// Just read.
    Read,
    /// Known from before; the database is unavailable, so it may have changed.
    Stale,
}

/// Metadata of images that were asked for. Clones share it.
#[derive(Clone)]
pub struct MetadataCache(Arc<Inner>);

struct Inner {
    store: Arc<dyn Reads>,
    presets: Arc<CurrentPresets>,
    /// Caches from which the bytes of deleted images are removed.
    tiers: Tiers,
    known: Cache<ImageId, CachedView>,
    reads: SingleFlight<ImageId, Result<Option<Arc<ImageView>>, Arc<StoreError>>>,
    good_for: Duration,
    turns: Turns,
    health: DependencyHealth,
    counters: TierCounters,
}

#[derive(Clone)]
struct CachedView {
    view: Option<Arc<ImageView>>,
    at: Instant,
}

impl MetadataCache {
    /// A cache over `store`, whose entries are good for `good_for`. The bytes of images that are gone are removed
    /// from `tiers`.
    pub fn new(
        store: Arc<dyn Reads>,
        presets: Arc<CurrentPresets>,
        tiers: Tiers,
        good_for: Duration,
    ) -> Self {
        let weigh =
            |_: &ImageId, known: &CachedView| known.view.as_ref().map_or(128, |view| view.weight());
        Self(Arc::new(Inner {
            store,
            presets,
            tiers,
            known: Cache::builder().max_capacity(BOUND).weigher(weigh).build(),
            reads: SingleFlight::default(),
            good_for,
            turns: Turns::new(READING, QUEUED),
            health: DependencyHealth::new("read image metadata"),
            counters: TierCounters::new("metadata"),
        }))
    }

    /// What is known of an image; read from the database if that is too old.
    pub async fn look_up(&self, id: ImageId) -> Result<Lookup, Arc<StoreError>> {
        let known = self.0.known.get(&id);
        let age = known.as_ref().map(|known| known.at.elapsed());
        if let (Some(known), Some(age)) = (&known, age)
            && age < self.0.good_for(known)
        {
            self.count_hit();
            return Ok(Lookup { view: known.view.clone(), freshness: Freshness::Cached });
        }
        self.0.counters.misses.increment(1);
        // Not an absent image, nor a private one, which nobody could tell from an absent one otherwise.
        let is_public = |view: &Arc<ImageView>| view.private_to.is_none();
        let fallback = known.filter(|known| {
            known.view.as_ref().is_some_and(is_public) && age.is_some_and(|age| age < STALE)
        });
        let Some(fallback) = fallback else { return self.read(id).await };
        if self.0.health.is_usable() {
            match tokio::time::timeout(PATIENCE, self.read(id)).await {
                Ok(Ok(answer)) => return Ok(answer),
                // Counted and logged where it occurred.
                Ok(Err(_)) => {}
                Err(_) => {
                    self.0.counters.errors.increment(1);
                    self.0.health.failed(&NoAnswer);
                }
            }
        } else {
            self.0.counters.skipped.increment(1);
        }
        Ok(Lookup { view: fallback.view, freshness: Freshness::Stale })
    }

    /// An image whose metadata is cached and still good. Not counted: see [`Self::count_hit`].
    pub fn try_cached(&self, id: ImageId) -> Option<Arc<ImageView>> {
        let known = self.0.known.get(&id)?;
        known.view.filter(|_| known.at.elapsed() < self.0.good_for)
    }

    /// Counts a hit.
    pub fn count_hit(&self) {
        self.0.counters.hits.increment(1);
    }

    /// Reads an image from the database, once for all requests at the same time.
    pub async fn read(&self, id: ImageId) -> Result<Lookup, Arc<StoreError>> {
        let inner = self.0.clone();
        let result = self.0.reads.join(id, || async move { inner.read(id).await }).await;
        let lost = || Arc::new(StoreError::Corrupt("a read of image metadata panicked".to_owned()));
        let view = result.value.ok_or_else(lost)??;
        Ok(Lookup { view, freshness: Freshness::Read })
    }

    /// Notes that `image` was deleted.
    pub fn mark_deleted(&self, image: &Image) {
        self.0.tiers.forget(ImageView::new(image, &self.0.presets).objects());
        let deleted =
            CachedView { view: Some(Arc::new(ImageView::deleted(image))), at: Instant::now() };
        self.0.known.insert(image.id, deleted);
    }

    /// Forgets an image: it has changed.
    pub fn forget(&self, id: ImageId) {
        self.0.known.invalidate(&id);
    }
}

impl Inner {
    /// How long an entry is good. An image that does not exist may be created at any moment. A private one is
    /// looked up as often, or the time of an answer would tell whether it exists.
    fn good_for(&self, known: &CachedView) -> Duration {
        let is_public = known.view.as_ref().is_some_and(|view| view.private_to.is_none());
        if is_public { self.good_for } else { NEGATIVE.min(self.good_for) }
    }

    /// Stores what was read; returns the current entry. A read that started before an image was deleted does
    /// not bring it back. Also removes the bytes of deleted images.
    fn update(&self, id: ImageId, read: CachedView) -> Option<Arc<ImageView>> {
        let mut lost = None;
        let is_gone = |known: &CachedView| known.view.as_ref().is_some_and(|view| view.discarded);
        let kept = self.known.entry(id).and_upsert_with(|before| match before {
            Some(before) if is_gone(before.value()) && !is_gone(&read) => before.into_value(),
            before => {
                if is_gone(&read) {
                    lost = before.and_then(|before| before.into_value().view);
                }
                read
            }
        });
        if let Some(lost) = lost {
            self.tiers.forget(lost.objects());
        }
        kept.into_value().view
    }

    async fn read(&self, id: ImageId) -> Result<Option<Arc<ImageView>>, Arc<StoreError>> {
        let Some(_turn) = self.turns.take().await else {
            let cause = io::Error::other("too many images are looked up");
            return Err(Arc::new(StoreError::Unavailable(Arc::new(cause))));
        };
        // Taken before the read, so that metadata never counts as newer than it is.
        let at = Instant::now();
        match self.store.image(id).await {
            Ok(image) => {
                self.health.recovered();
                let view = image.map(|image| Arc::new(ImageView::new(&image, &self.presets)));
                Ok(self.update(id, CachedView { view, at }))
            }
            Err(error) => {
                self.counters.errors.increment(1);
                if error.is_unavailable() {
                    self.health.failed(&error);
                }
                Err(Arc::new(error))
            }
        }
    }
}
