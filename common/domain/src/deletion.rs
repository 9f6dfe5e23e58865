//! Deletions: the receipt for the client, and the data for the job.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{ContentHash, ImageFormat};

/// Everything of an image that a deletion removes for its owner. It does not depend on whether another owner
/// stored the same bytes, so it does not reveal that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The size of the original.
    pub bytes: u64,
    /// Its renditions, by the presets at the time of the request.
    pub renditions: Vec<RemovedRendition>,
    /// The number of caching proxies that confirmed the removal; `None` until all have confirmed and everything
    /// else is removed.
    #[serde(skip)]
    pub proxies: Option<u32>,
}

/// A rendition in a [`Receipt`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedRendition {
    /// The preset's name.
    pub preset: String,
    /// Its format.
    pub format: ImageFormat,
    /// Its size.
    pub bytes: u64,
}

/// The data that a deletion's job needs and may have removed in an earlier attempt. It is internal, and dropped
/// when the job is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Every preset with a rendition of any fingerprint, because proxies may have it.
    pub presets: BTreeSet<String>,
    /// The hashes of the original and of its renditions, for the keys of its owner's cache entries.
    pub objects: Vec<ContentHash>,
}
