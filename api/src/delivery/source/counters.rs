//! Metrics of the tiers.

use metrics::{Counter, counter};

/// `safelight_cache_requests_total` of one tier.
pub struct TierCounters {
    /// It had what was asked for.
    pub hits: Counter,
    /// It did not.
    pub misses: Counter,
    /// It failed or was too slow.
    pub errors: Counter,
    /// It was not asked, because it is failing.
    pub skipped: Counter,
}

impl TierCounters {
    /// The counters of `tier`.
    pub fn new(tier: &'static str) -> Self {
        let result = |result: &'static str| counter!("safelight_cache_requests_total", "tier" => tier, "result" => result);
        Self {
            hits: result("hit"),
            misses: result("miss"),
            errors: result("error"),
            skipped: result("skipped"),
        }
    }

    /// Counts a hit or a miss.
    pub fn count(&self, found: bool) {
        if found { self.hits.increment(1) } else { self.misses.increment(1) }
    }
}

/// A read that reached the store.
pub fn store_read() {
    counter!("safelight_blob_reads_total", "source" => "store").increment(1);
}
