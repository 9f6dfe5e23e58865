//! The limits of each owner.

use std::collections::BTreeMap;

use safelight_domain::Owner;
use serde::Deserialize;

use super::Config;

/// The limits of one owner. 0 means no limit, except for `max_uploads_in_flight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerLimits {
    /// Images stored.
    pub quota_images: u64,
    /// Bytes of originals stored.
    pub quota_bytes: u64,
    /// API calls per minute.
    pub requests_per_minute: u32,
    /// Uploads per minute.
    pub uploads_per_minute: u32,
    /// Concurrent uploads per process: at least one, and at most the number for all owners.
    pub max_uploads_in_flight: usize,
}

/// The limits that differ for one owner.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // documented in `defaults.toml`
pub struct OwnerOverrides {
    pub quota_images: Option<u64>,
    pub quota_bytes: Option<u64>,
    pub requests_per_minute: Option<u32>,
    pub uploads_per_minute: Option<u32>,
    pub max_uploads_in_flight_per_owner: Option<usize>,
}

/// The owners with different limits.
pub type Owners = BTreeMap<Owner, OwnerOverrides>;

impl Config {
    /// Whether only this machine can reach the server: it listens on a loopback address, and no proxy is
    /// configured.
    pub fn is_for_this_machine(&self) -> bool {
        self.listen.ip().is_loopback() && !self.behind_tls
    }

    /// The limits of `owner`.
    pub fn limits_of(&self, owner: &Owner) -> OwnerLimits {
        let own = self.owners.get(owner).copied().unwrap_or_default();
        OwnerLimits {
            quota_images: own.quota_images.unwrap_or(self.quota_images),
            quota_bytes: own.quota_bytes.unwrap_or(self.quota_bytes),
            requests_per_minute: own.requests_per_minute.unwrap_or(self.requests_per_minute),
            uploads_per_minute: own.uploads_per_minute.unwrap_or(self.uploads_per_minute),
            max_uploads_in_flight: self.uploads_per_owner(own.max_uploads_in_flight_per_owner),
        }
    }

    /// The maximum number of waiting clients of one owner.
    pub fn waiting_per_owner(&self) -> usize {
        match self.max_waiting_per_owner {
            0 => self.max_waiting.div_ceil(5),
            limit => limit.min(self.max_waiting),
        }
    }

    /// The maximum number of concurrent uploads of one owner.
    fn uploads_per_owner(&self, own: Option<usize>) -> usize {
        match own.unwrap_or(self.max_uploads_in_flight_per_owner) {
            0 => self.max_uploads_in_flight.div_ceil(2),
            limit => limit.min(self.max_uploads_in_flight),
        }
    }
}
