//! Moves of objects within the store.
//!
//! A store without renames copies and then deletes. In between, two processes can have a copy each, and if one of
//! them removed both copies, the other one's deletion would take the last bytes. So a copy belongs to its mover for
//! [`MoveLimits::over_after`], and a mover that was suspended meanwhile deletes nothing.

use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use object_store::{GetOptions, ObjectStoreExt, path::Path};
use safelight_domain::{ContentHash, ContentHasher};

use super::{BlobError, Blobs};
use crate::{
    move_limits::MoveLimits,
    time_limits::{FIRST_BYTE, in_time, with_stall_timeout},
};

impl Blobs {
    /// The same store, whose abandoned objects are at least `grace` old. Moves may take a part of that; without it, and
    /// at most, five minutes.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.moves = MoveLimits::within(grace);
        self
    }

    /// Moves an object. Returns `false` if it does not exist.
    pub(super) async fn rename(&self, from: &Path, to: &Path) -> Result<bool, BlobError> {
        found(self.move_object(from, to).await)
    }

    /// Puts an object at a second path, and keeps the first one in a store without renames. Returns `false` if it does
    /// not exist.
    pub(super) async fn rename_or_copy(&self, from: &Path, to: &Path) -> Result<bool, BlobError> {
        if self.is_local() {
            return self.rename(from, to).await;
        }
        found(self.copy_object(from, to).await)
    }

    /// The moves that have certainly ended by now. In a store without renames this writes its clock.
    pub async fn ended_moves(&self) -> Result<EndedMoves, BlobError> {
        if self.is_local() {
            return Ok(EndedMoves(None));
        }
        Ok(EndedMoves(Some(self.clock().await? - self.moves.over_after)))
    }

    pub(super) async fn move_object(&self, from: &Path, to: &Path) -> Result<(), BlobError> {
        if self.is_local() {
            return self.believe(self.store.rename(from, to).await).await;
        }
        let begun = Begun::now();
        self.copy_object(from, to).await?;
        safelight_fail_points::hit("blobs.copied").await;
        if begun.elapsed() > self.moves.begin_to_delete {
            return Err(BlobError::Late);
        }
        self.delete_path(from).await
    }

    /// Copies an object. Succeeds only if the copy is whole: a store that acknowledges a copy and drops it must not
    /// make us delete the only one.
    async fn copy_object(&self, from: &Path, to: &Path) -> Result<(), BlobError> {
        let original = self.believe(self.store.head(from).await).await?;
        self.believe(self.store.copy(from, to).await).await?;
        let copy = match self.store.head(to).await {
            Err(object_store::Error::NotFound { path, source }) => {
                // Not missing bytes: the first object is still there.
                let source = format!("the store lost the copy {path}: {source}").into();
                return Err(BlobError::Store(object_store::Error::Generic {
                    store: "blobs",
                    source,
                }));
            }
            found => self.believe(found).await?,
        };
        let is_same = original.size == copy.size
            && match (&original.e_tag, &copy.e_tag) {
                (Some(original), Some(copy)) if original == copy => true,
                // Of an object that was sent in parts, or encrypted, the copy has another tag.
                _ => self.hash_path(from).await? == self.hash_path(to).await?,
            };
        if is_same { Ok(()) } else { Err(BlobError::Damaged) }
    }

    /// The hash of a whole object.
    async fn hash_path(&self, path: &Path) -> Result<ContentHash, BlobError> {
        let read = in_time(FIRST_BYTE, self.reads.get_opts(path, GetOptions::default())).await?;
        let mut stream = with_stall_timeout(read.into_stream());
        let mut hasher = ContentHasher::default();
        while let Some(chunk) = stream.try_next().await? {
            hasher.update(&chunk);
        }
        Ok(hasher.finish())
    }
}

/// Moves that have certainly ended: those before a time by [`Blobs::clock`]. All, if the store renames, which leaves
/// nothing between.
#[derive(Debug, Clone, Copy)]
pub struct EndedMoves(Option<DateTime<Utc>>);

impl EndedMoves {
    /// Whether the move is among them that wrote an object at this time. Otherwise the object belongs to its mover.
    pub fn include(&self, written_at: DateTime<Utc>) -> bool {
        self.0.is_none_or(|before| written_at < before)
    }
}

fn found(moved: Result<(), BlobError>) -> Result<bool, BlobError> {
    match moved {
        Ok(()) => Ok(true),
        Err(BlobError::NotFound) => Ok(false),
        Err(error) => Err(error),
    }
}

/// When a move began, by both clocks: one stands still while the machine is suspended, the other one can be set back.
struct Begun(Instant, SystemTime);

impl Begun {
    fn now() -> Self {
        Self(Instant::now(), SystemTime::now())
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed().max(self.1.elapsed().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_a_move_is_the_longer_of_both_clocks() {
        let (now, today, hour) = (Instant::now(), SystemTime::now(), Duration::from_hours(1));
        assert!(Begun(now, today).elapsed() < hour);
        assert!(Begun(now, today - hour).elapsed() >= hour, "the machine was suspended");
        assert!(Begun(now, today + hour).elapsed() < hour, "the clock was set back");
        if let Some(earlier) = now.checked_sub(hour) {
            assert!(Begun(earlier, today).elapsed() >= hour, "the process was suspended");
        }
    }
}
