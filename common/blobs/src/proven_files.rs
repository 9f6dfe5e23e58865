//! Files that this process has hashed a moment ago.

use std::time::Duration;

use moka::sync::Cache;
use safelight_domain::ContentHash;

use super::Stamp;

/// How long a file counts as proven. It was just written or read, so its bytes are most likely still in the kernel's
/// memory: to hash them again says nothing of the disk.
const PROVEN_FOR: Duration = Duration::from_mins(1);

/// Files that are remembered.
const AT_MOST: u64 = 10_000;

/// The blobs of a local store whose bytes this process has hashed, and the state of their files then. Clones are the
/// same.
#[derive(Clone)]
pub(super) struct ProvenFiles(Cache<ContentHash, Stamp>);

impl Default for ProvenFiles {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(AT_MOST).time_to_live(PROVEN_FOR).build())
    }
}

impl ProvenFiles {
    /// A file in this state has the bytes of its hash.
    pub fn insert(&self, sha256: ContentHash, state: Stamp) {
        self.0.insert(sha256, state);
    }

    /// Whether a file in this state was found to have the bytes of its hash.
    pub fn knows(&self, sha256: &ContentHash, state: Stamp) -> bool {
        self.0.get(sha256) == Some(state)
    }
}
