//! The free space of the file systems that uploads fill, and the reserve that uploads leave there.
//!
//! A full disk cannot be emptied through Safelight: a deletion writes to the database first. So uploads and
//! renditions stop while there is still space. Deletions, cancellations, moves to the trash, and the database
//! itself do not ask, and use the reserve.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{BlobError, blocking::blocking};

/// How long a measurement is good. What this process writes meanwhile is subtracted from it.
const MAX_AGE: Duration = Duration::from_millis(500);

/// The reserve is at most this part of a file system, so that a small one can be used at all.
const MAX_SHARE: u64 = 10;

/// Less than this is no reserve: a database needs that much to delete something. (At most a third of the file system.)
const SMALLEST: u64 = 8 << 20;

/// What is stored on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoragePlace {
    /// The blobs of a local directory.
    Blobs,
    /// The SQLite file.
    Database,
    /// Bodies on their way to a remote store.
    Spool,
}

impl StoragePlace {
    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blobs => "blobs",
            Self::Database => "database",
            Self::Spool => "spool",
        }
    }
}

/// The local folders that an upload needs. By default there are none, and nothing is limited.
#[derive(Clone, Default)]
pub(super) struct FreeSpace(Arc<[Folder]>);

struct Folder {
    place: StoragePlace,
    path: PathBuf,
    /// In bytes; 0 for none.
    min_free: u64,
    /// The reserve is at most the file system's size divided by this.
    max_share: u64,
    measured: Mutex<Option<Measured>>,
}

#[derive(Clone, Copy)]
struct Measured {
    at: Instant,
    /// Bytes beyond the reserve; `None` if less than the reserve is free.
    spare: Option<u64>,
}

impl FreeSpace {
    /// Limits what is written to `places`; see [`Blobs::with_reserve`](super::Blobs::with_reserve).
    pub(super) fn new(
        places: impl IntoIterator<Item = (StoragePlace, PathBuf)>,
        min_free: u64,
    ) -> Self {
        Self::with_share(places, min_free, MAX_SHARE)
    }

    fn with_share(
        places: impl IntoIterator<Item = (StoragePlace, PathBuf)>,
        min_free: u64,
        max_share: u64,
    ) -> Self {
        let folder =
            |(place, path)| Folder { place, path, min_free, max_share, measured: Mutex::default() };
        Self(places.into_iter().map(folder).collect())
    }

    /// As if all of the file system was reserved.
    #[cfg(test)]
    pub(super) fn all_reserved(path: PathBuf) -> Self {
        Self::with_share([(StoragePlace::Blobs, path)], u64::MAX, 1)
    }

    /// The free bytes of each place. Leaves out those that cannot be measured.
    pub(super) async fn measure(&self) -> Vec<(StoragePlace, u64)> {
        let mut found = Vec::new();
        for folder in &*self.0 {
            found.extend(folder.measure().await.map(|free| (folder.place, free)));
        }
        found
    }

    /// Before an upload of `bytes`. Fails with [`BlobError::Full`] if it would not leave the reserve.
    pub(super) async fn check(&self, bytes: u64) -> Result<(), BlobError> {
        for folder in &*self.0 {
            // What is recorded of an upload is small.
            let bytes = if folder.place == StoragePlace::Database { 0 } else { bytes };
            folder.require(bytes).await?;
        }
        Ok(())
    }

    /// Before `bytes` are written to the folder of a local store, or to the spool.
    pub(super) async fn take(&self, bytes: u64) -> Result<(), BlobError> {
        for folder in self.0.iter().filter(|folder| folder.place != StoragePlace::Database) {
            folder.require(bytes).await?;
            folder.subtract(bytes);
        }
        Ok(())
    }
}

impl Folder {
    /// Fails if `bytes` more would not leave the reserve. If that cannot be measured, writing will tell.
    async fn require(&self, bytes: u64) -> Result<(), BlobError> {
        if self.min_free == 0 {
            return Ok(());
        }
        let last = self.last().filter(|last| last.at.elapsed() < MAX_AGE);
        if last.is_some_and(|last| leaves_reserve(last.spare, bytes)) {
            return Ok(());
        }
        if self.measure().await.is_none() {
            return Ok(());
        }
        match self.last() {
            Some(measured) if !leaves_reserve(measured.spare, bytes) => Err(BlobError::Full),
            _ => Ok(()),
        }
    }

    /// Measures the free bytes again. In another thread, because a network file system can hang.
    async fn measure(&self) -> Option<u64> {
        let path = self.path.clone();
        let found = blocking(move || Ok(rustix::fs::statvfs(&path)?)).await;
        let found = found.inspect_err(|error| {
            tracing::debug!(%error, path = %self.path.display(), "cannot measure free space");
        });
        let found = found.ok()?;
        // What users without privileges can use.
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        let total = found.f_blocks.saturating_mul(found.f_frsize);
        let spare = free.checked_sub(self.reserve(total));
        *self.lock() = Some(Measured { at: Instant::now(), spare });
        Some(free)
    }

    /// The reserve on a file system of `total` bytes.
    fn reserve(&self, total: u64) -> u64 {
        let share = total / self.max_share;
        self.min_free.min(share.max(SMALLEST.min(total / 3)))
    }

    fn last(&self) -> Option<Measured> {
        *self.lock()
    }

    fn subtract(&self, bytes: u64) {
        if let Some(Measured { spare: Some(spare), .. }) = &mut *self.lock() {
            *spare = spare.saturating_sub(bytes);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Measured>> {
        // No panic can leave the value half-changed.
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn leaves_reserve(spare: Option<u64>, bytes: u64) -> bool {
    spare.is_some_and(|spare| bytes <= spare)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(min_free: u64) -> Folder {
        let (place, path, measured) = (StoragePlace::Blobs, PathBuf::new(), Mutex::default());
        Folder { place, path, min_free, max_share: MAX_SHARE, measured }
    }

    #[test]
    fn reserve_is_at_most_a_tenth_of_the_file_system() {
        let mib = |count: u64| count << 20;
        assert_eq!(folder(mib(64)).reserve(mib(1000)), mib(64));
        assert_eq!(folder(mib(64)).reserve(mib(100)), mib(10));
        assert_eq!(folder(mib(64)).reserve(mib(60)), mib(8), "a database needs some");
        assert_eq!(folder(mib(64)).reserve(mib(12)), mib(4));
        assert_eq!(folder(0).reserve(mib(100)), 0);
    }

    #[test]
    fn less_than_the_reserve_admits_nothing() {
        assert!(leaves_reserve(Some(5), 5));
        assert!(!leaves_reserve(Some(5), 6));
        assert!(leaves_reserve(Some(0), 0));
        assert!(!leaves_reserve(None, 0));
    }

    /// Uploads that stream at the same time share what one measurement found.
    #[test]
    fn what_is_written_counts_until_the_next_measurement() {
        let folder = folder(1);
        *folder.lock() = Some(Measured { at: Instant::now(), spare: Some(100) });
        folder.subtract(60);
        folder.subtract(60);
        assert_eq!(folder.last().and_then(|last| last.spare), Some(0));
    }
}
