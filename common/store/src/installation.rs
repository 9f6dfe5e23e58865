//! The name of the installation, and whether this database is an older copy of itself.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::InstallationId;

use crate::StoreError;

/// What the database knows about the installation that it belongs to.
#[async_trait]
pub trait Installations: Send + Sync + 'static {
    /// The installation. Every migrated database has exactly one.
    async fn installation(&self) -> Result<Installation, StoreError>;

    /// Records that the blob store carries the installation's mark.
    async fn record_mark(&self) -> Result<(), StoreError>;

    /// Makes the generation larger than it is, and at least `at_least`. Returns the new one.
    async fn advance_generation(&self, at_least: u64) -> Result<u64, StoreError>;

    /// Records that this database is an older copy, or a promoted standby: for this long, nothing is removed for
    /// the reason alone that the database does not know it. Its line of history is the recorded one from now on.
    async fn keep_unknown(&self, duration: Duration) -> Result<(), StoreError>;
}

/// The installation that a database belongs to.
#[allow(clippy::struct_excessive_bools)] // independent facts
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// Its name, which the blob store carries too.
    pub id: InstallationId,
    /// Whether the blob store was marked with it.
    pub is_marked: bool,
    /// Whether any image was ever recorded.
    pub has_images: bool,
    /// Grows while workers run. The blob store has a copy, which is never larger unless this database is older
    /// than what is stored.
    pub generation: u64,
    /// Whether the database server follows another line of history than the one recorded: a standby was promoted,
    /// or a copy was restored.
    pub is_other_lineage: bool,
    /// Whether nothing may be removed for the reason alone that this database does not know it.
    pub keeps_unknown: bool,
}
