//! What is known of images, so that most requests ask the database nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use moka::sync::Cache;
use safelight_domain::{Image, ImageId};
use safelight_store::{DynStore, StoreError};

use super::{
    entry::Entry,
    source::{Flights, Health, PATIENCE, TierCounters, Tiers},
};
use crate::{extract::PathId, images::gone, problem::Problem, state::CurrentPresets};

/// Memory for what is known, in bytes.
const BOUND: u64 = 24 << 20;

/// How long it is believed that there is no such image.
const NEGATIVE: Duration = Duration::from_secs(1);

/// How long the last answer is good while the database is away.
const STALE: Duration = Duration::from_mins(10);

/// What the catalog says of an image.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The image; `None` if there is none.
    pub entry: Option<Arc<Entry>>,
    /// How it is known.
    pub freshness: Freshness,
}

impl Answer {
    /// The image; a problem if `id` is none, or none any more.
    pub fn image(&self, id: ImageId) -> Result<&Entry, Problem> {
        let entry = self.entry.as_deref().ok_or_else(|| ImageId::not_found(id))?;
        if entry.discarded { Err(gone(entry.deleted)) } else { Ok(entry) }
    }
}

/// How far an answer can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Known from before, and still good.
    Cached,
    /// Just read.
    Read,
    /// Known from before; the database does not say whether it still holds.
    Stale,
}

/// The images that were asked for. Clones share it.
#[derive(Clone)]
pub struct Catalog(Arc<Inner>);

struct Inner {
    store: DynStore,
    presets: Arc<CurrentPresets>,
    /// The bytes, which go with their image.
    tiers: Tiers,
    known: Cache<ImageId, Known>,
    lookups: Flights<ImageId, Result<Option<Arc<Entry>>, Arc<StoreError>>>,
    good_for: Duration,
    health: Health,
    counters: TierCounters,
}

#[derive(Clone)]
struct Known {
    entry: Option<Arc<Entry>>,
    at: Instant,
}

impl Catalog {
    /// A catalog over `store` of what is in `tiers`, that believes an answer for `good_for`.
    pub fn new(
        store: DynStore,
        presets: Arc<CurrentPresets>,
        tiers: Tiers,
        good_for: Duration,
    ) -> Self {
        let weigh =
            |_: &ImageId, known: &Known| known.entry.as_ref().map_or(128, |entry| entry.weight());
        Self(Arc::new(Inner {
            store,
            presets,
            tiers,
            known: Cache::builder().max_capacity(BOUND).weigher(weigh).build(),
            lookups: Flights::default(),
            good_for,
            health: Health::new("the database"),
            counters: TierCounters::new("metadata"),
        }))
    }

    /// What is known of an image, asking the database if that is too old.
    pub async fn look_up(&self, id: ImageId) -> Result<Answer, Arc<StoreError>> {
        let known = self.0.known.get(&id);
        let age = known.as_ref().map(|known| known.at.elapsed());
        if let (Some(known), Some(age)) = (&known, age)
            && age < self.0.good_for(known)
        {
            self.count_hit();
            return Ok(Answer { entry: known.entry.clone(), freshness: Freshness::Cached });
        }
        self.0.counters.misses.increment(1);
        // An image that is gone or was never there is not shown again because nobody can be asked.
        let fallback =
            known.filter(|known| known.entry.is_some() && age.is_some_and(|age| age < STALE));
        let Some(fallback) = fallback else { return self.read(id).await };
        if self.0.health.is_usable() {
            match tokio::time::timeout(PATIENCE, self.read(id)).await {
                Ok(Ok(answer)) => return Ok(answer),
                // Counted and noted where it came up.
                Ok(Err(_)) => {}
                Err(_) => {
                    self.0.counters.errors.increment(1);
                    self.0.health.failed(&"it does not answer");
                }
            }
        } else {
            self.0.counters.skipped.increment(1);
        }
        Ok(Answer { entry: fallback.entry, freshness: Freshness::Stale })
    }

    /// An image of which what is known is still good. Not counted: see [`Self::count_hit`].
    pub fn at_hand(&self, id: ImageId) -> Option<Arc<Entry>> {
        let known = self.0.known.get(&id)?;
        known.entry.filter(|_| known.at.elapsed() < self.0.good_for)
    }

    /// Notes that what was known was enough.
    pub fn count_hit(&self) {
        self.0.counters.hits.increment(1);
    }

    /// Reads an image anew, once for all who ask at the same time.
    pub async fn read(&self, id: ImageId) -> Result<Answer, Arc<StoreError>> {
        let inner = self.0.clone();
        let landed = self.0.lookups.join(id, || async move { inner.read(id).await }).await;
        let lost = || Arc::new(StoreError::Corrupt("a look-up panicked".to_owned()));
        let entry = landed.value.ok_or_else(lost)??;
        Ok(Answer { entry, freshness: Freshness::Read })
    }

    /// Learns that an image was deleted, which was like this before.
    pub fn bury(&self, image: &Image) {
        self.0.tiers.forget(Entry::new(image, &self.0.presets).objects());
        let deleted = Known { entry: Some(Arc::new(Entry::deleted(image))), at: Instant::now() };
        self.0.known.insert(image.id, deleted);
    }

    /// Forgets an image: it has changed.
    pub fn forget(&self, id: ImageId) {
        self.0.known.invalidate(&id);
    }
}

impl Inner {
    /// What is not final can change any moment, and is asked for again.
    fn good_for(&self, known: &Known) -> Duration {
        if known.entry.is_some() { self.good_for } else { NEGATIVE.min(self.good_for) }
    }

    /// Keeps what was read; answers with what is known now. An image that is gone does not come back: who
    /// says so was asked before it went. Of one that has gone, the bytes go as well.
    fn learn(&self, id: ImageId, read: Known) -> Option<Arc<Entry>> {
        let mut lost = None;
        let is_gone = |known: &Known| known.entry.as_ref().is_some_and(|entry| entry.discarded);
        let kept = self.known.entry(id).and_upsert_with(|before| match before {
            Some(before) if is_gone(before.value()) && !is_gone(&read) => before.into_value(),
            before => {
                if is_gone(&read) {
                    lost = before.and_then(|before| before.into_value().entry);
                }
                read
            }
        });
        if let Some(lost) = lost {
            self.tiers.forget(lost.objects());
        }
        kept.into_value().entry
    }

    async fn read(&self, id: ImageId) -> Result<Option<Arc<Entry>>, Arc<StoreError>> {
        // From before the question: what changes meanwhile is then older than the answer says.
        let at = Instant::now();
        match self.store.image(id).await {
            Ok(image) => {
                self.health.works();
                let entry = image.map(|image| Arc::new(Entry::new(&image, &self.presets)));
                Ok(self.learn(id, Known { entry, at }))
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
