//! What a copy of the database knows, for backups.

use safelight_domain::{ContentHash, ImageId, InstallationId};

/// A copy of the database as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// The installation that it belongs to.
    pub installation: InstallationId,
    /// The newest migration in it.
    pub schema_version: i64,
    /// The number of images, without discarded ones.
    pub images: u64,
}

/// Bytes that an image of a copy needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NeededBytes {
    /// Their hash.
    pub sha256: ContentHash,
    /// Their number.
    pub bytes: u64,
    /// The image.
    pub image: ImageId,
    /// Where they are.
    pub state: BytesState,
}

/// What became of an image's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BytesState {
    /// Its write job has succeeded: they are a blob.
    Stored,
    /// Its write job is open: they are staged, or a blob.
    Staged,
    /// Its write job has failed. They are still staged if the upload can be retried.
    Failed,
}
