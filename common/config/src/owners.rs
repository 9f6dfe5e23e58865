//! What each owner may.

use std::collections::BTreeMap;

use safelight_domain::Owner;
use serde::Deserialize;

use super::Config;

/// How much an owner may store and how often it may ask, for which 0 is any number; and how much it may send
/// at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerLimits {
    /// Images stored.
    pub quota_images: u64,
    /// Bytes of originals stored.
    pub quota_bytes: u64,
    /// Calls of the API per minute.
    pub requests_per_minute: u32,
    /// Uploads per minute.
    pub uploads_per_minute: u32,
    /// Uploads that one process receives at once: at least one, and no more than from all owners together.
    pub max_uploads_in_flight: usize,
}

/// What is said of one owner; the rest is as for all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // as those of all owners
pub struct OwnerOverrides {
    pub quota_images: Option<u64>,
    pub quota_bytes: Option<u64>,
    pub requests_per_minute: Option<u32>,
    pub uploads_per_minute: Option<u32>,
    pub max_uploads_in_flight_per_owner: Option<usize>,
}

/// The owners of whom something is said.
pub type Owners = BTreeMap<Owner, OwnerOverrides>;

impl Config {
    /// Whether only this machine can reach the server: it listens on the loopback address, and no proxy is
    /// said to stand before it.
    pub fn is_for_this_machine(&self) -> bool {
        self.listen.ip().is_loopback() && !self.behind_tls
    }

    /// What an owner may.
    pub fn limits_of(&self, owner: &Owner) -> OwnerLimits {
        let own = self.owners.get(owner).copied().unwrap_or_default();
        OwnerLimits {
            quota_images: own.quota_images.unwrap_or(self.quota_images),
            quota_bytes: own.quota_bytes.unwrap_or(self.quota_bytes),
            requests_per_minute: own.requests_per_minute.unwrap_or(self.requests_per_minute),
            uploads_per_minute: own.uploads_per_minute.unwrap_or(self.uploads_per_minute),
            max_uploads_in_flight: self.share(own.max_uploads_in_flight_per_owner),
        }
    }

    /// How many of the uploads in flight may be one owner's, if this is said of it.
    fn share(&self, own: Option<usize>) -> usize {
        match own.unwrap_or(self.max_uploads_in_flight_per_owner) {
            0 => self.max_uploads_in_flight.div_ceil(2),
            share => share.min(self.max_uploads_in_flight),
        }
    }
}
