//! Where bytes come from: tiers of caches, and the store behind them.
//!
//! ```text
//! small objects    memory ─▶ [ disk ─▶ shared ─▶ store ]      one load per process and object
//! large objects    file that is already being read ─▶ [ disk ─▶ store ]
//! ```
//!
//! What is in brackets runs once for all concurrent requests. Every tier identifies an object by its owner
//! and the hash of its content ([`CacheKey`](safelight_domain::CacheKey)), and every tier but the first is
//! checked against that hash; [`known`] remembers which large objects were. `disk` is used only in front of a
//! remote store, `shared` only if it is configured. A tier that fails is left out (see [`optional_tier`]); only
//! a failure of the store fails the read.

mod bounded_blocking;
mod cache_fill;
mod counters;
mod disk;
mod file;
mod known;
mod memory;
mod object;
mod optional_tier;
mod shared;
mod single_flight;
mod stored;
mod tiers;

pub use counters::TierCounters;
pub use object::{OpenObject, Provenance};
pub use single_flight::SingleFlight;
pub use stored::StoredObject;
pub use tiers::{TierSizes, Tiers};
