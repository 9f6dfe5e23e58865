//! The state of a file.

use std::{fs::Metadata, os::unix::fs::MetadataExt};

/// Changes when a file is written to or replaced. It does not detect a disk that returns other bytes than were
/// written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    /// Also changes where a tool sets the modification time back.
    changed: (i64, i64),
}

impl Stamp {
    /// The state of the file with this metadata.
    pub fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}
