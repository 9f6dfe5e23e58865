//! Deletions: what is removed of an image, for whoever asked, and for the job that does it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{ContentHash, ImageFormat};

/// What a deletion removes of one image: what its owner had, and has no more. It is the same whether or
/// not somebody else stored the same bytes, so that nobody learns of that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The size of the original.
    pub bytes: u64,
    /// Its renditions, as they were configured when it was asked for.
    pub renditions: Vec<RemovedRendition>,
    /// How many caching proxies have confirmed that they have it no more; `None` until all have, and
    /// everything else is gone as well.
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

/// What the job of a deletion has to know about what it may have removed already. Never shown, and
/// forgotten when the job is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// Every preset of which there was a rendition, of whatever fingerprint: proxies may have it.
    pub presets: BTreeSet<String>,
    /// The hashes of the original's and its renditions' bytes, by which its owner's caches know them.
    pub objects: Vec<ContentHash>,
}
