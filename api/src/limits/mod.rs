//! How much an owner may store, and how often it may ask.

mod bucket;
mod in_memory;
mod quota;
mod rates;
mod refusals;
mod shares;

use std::sync::Arc;

use axum::http::HeaderMap;
use safelight_config::{Config, OwnerLimits};
use safelight_domain::{Owner, Quota, Usage};
use safelight_shared_cache::SharedCache;
use safelight_store::{Access, StoreError};

pub use in_memory::{Held, InMemory};
pub use quota::over_quota;
pub use rates::Counted;
pub use refusals::{Refused, network};
pub use shares::{NoPermit, Permit, Shares};

use crate::{auth::Caller, http::problem::Problem};
use rates::Rates;
use refusals::Refusals;

/// The limits of all owners. Clones share the counts.
#[derive(Clone)]
pub struct Limits(Arc<Inner>);

struct Inner {
    config: Arc<Config>,
    store: Arc<dyn Access>,
    rates: Rates,
    in_memory: InMemory,
    refusals: Refusals,
}

impl Limits {
    /// The limits of `config`. Rates are counted in `shared_cache`, if there is one, for all nodes together.
    pub fn new(
        config: Arc<Config>,
        store: Arc<dyn Access>,
        shared_cache: Option<SharedCache>,
    ) -> Self {
        let refusals = Refusals::new(config.max_connections);
        Self(Arc::new(Inner {
            config,
            store,
            rates: Rates::new(shared_cache),
            in_memory: InMemory::default(),
            refusals,
        }))
    }

    /// The configured limits of an owner.
    pub fn of(&self, owner: &Owner) -> OwnerLimits {
        self.0.config.limits_of(owner)
    }

    /// Counts one of `counted` for `owner`. Returns the headers that show what is left; the problem beyond
    /// the limit has them too.
    pub async fn count(&self, owner: &Owner, counted: Counted) -> Result<HeaderMap, Problem> {
        self.0.rates.count(owner, counted, self.of(owner)).await
    }

    /// What requests hold in memory.
    pub fn in_memory(&self) -> &InMemory {
        &self.0.in_memory
    }

    /// How often clients are refused.
    pub fn refusals(&self) -> &Refusals {
        &self.0.refusals
    }

    /// What an owner may store.
    pub fn quota(&self, owner: &Owner) -> Quota {
        quota::quota(self.of(owner))
    }

    /// What an owner has stored.
    pub async fn usage(&self, owner: &Owner) -> Result<Usage, StoreError> {
        self.0.store.usage(owner).await
    }

    /// The maximum number of concurrent uploads of the caller's owner per node. Without keys there is only one client,
    /// which may use them all.
    pub fn max_concurrent_uploads(&self, caller: &Caller) -> usize {
        if caller.has_key() {
            self.of(&caller.owner).max_uploads_in_flight
        } else {
            self.0.config.max_uploads_in_flight
        }
    }

    /// Rejects an upload of `bytes` bytes that certainly exceeds the quota, before its body is read. The
    /// transaction that accepts the upload makes the final check.
    pub async fn admit(&self, owner: &Owner, bytes: Option<u64>) -> Result<(), Problem> {
        let quota = self.quota(owner);
        if quota.is_unlimited() {
            return Ok(());
        }
        let used = self.usage(owner).await?;
        // Every upload has at least one byte.
        if quota.has_room(used, bytes.unwrap_or(1).max(1)) {
            Ok(())
        } else {
            Err(over_quota(quota, used))
        }
    }
}
