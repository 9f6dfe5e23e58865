//! Removes what no snapshot of a backup needs. What was written in the last day may belong to a backup that is running
//! on another machine, and stays.

use std::collections::HashSet;

use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt;
use safelight_blobs::{BlobKey, Blobs};
use safelight_domain::{ContentHash, ImageId};
use safelight_store_sql::BytesState;

use super::{contents::Contents, merge::Walk, snapshots};
use crate::error::CommandError;

/// What is younger stays.
const MIN_AGE: TimeDelta = TimeDelta::days(1);

/// The time before which objects were written that may be removed, by the backup's clock.
pub async fn limit(backup: &Blobs) -> Result<DateTime<Utc>, CommandError> {
    Ok(backup.clock().await.map_err(CommandError::failed)? - MIN_AGE)
}

/// Removes the staged bytes of uploads that no snapshot has as unfinished or failed, if they were written before
/// `before`. Returns how many.
pub async fn remove_staged(backup: &Blobs, before: DateTime<Utc>) -> Result<u64, CommandError> {
    let listed = backup
        .incoming()
        .try_filter_map(async |staged| Ok((staged.modified < before).then_some(staged.image)));
    let staged: Vec<ImageId> = listed.try_collect().await.map_err(CommandError::failed)?;
    if staged.is_empty() {
        return Ok(0);
    }
    let mut unfinished = HashSet::new();
    for list in snapshots::lists(backup).await? {
        let mut contents = Contents::open(backup, &list).await.map_err(CommandError::failed)?;
        while let Some(needed) = contents.next().await.map_err(CommandError::failed)? {
            if needed.state != BytesState::Stored {
                unfinished.insert(needed.image);
            }
        }
    }
    let mut removed = 0;
    for image in staged {
        if !unfinished.contains(&image) {
            backup.delete(&BlobKey::Incoming(image)).await.map_err(CommandError::failed)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes the blobs that no snapshot needs and that `source` does not have, with their renditions, if they were
/// written before `before`. Returns how many objects.
pub async fn remove_unneeded(
    backup: &Blobs,
    source: &Blobs,
    before: DateTime<Utc>,
) -> Result<u64, CommandError> {
    let blobs = Walk::new(backup, false);
    let renditions = Walk::renditions(backup);
    let mut removed = 0;
    for walk in [blobs, renditions] {
        removed += remove_of(walk, backup, source, before).await?;
    }
    Ok(removed)
}

async fn remove_of(
    mut walk: Walk,
    backup: &Blobs,
    source: &Blobs,
    before: DateTime<Utc>,
) -> Result<u64, CommandError> {
    let mut lists = Vec::new();
    for list in snapshots::lists(backup).await? {
        lists.push(Contents::open(backup, &list).await.map_err(CommandError::failed)?);
    }
    let mut decided: Option<(ContentHash, bool)> = None;
    let mut removed = 0;
    while let Some(object) = walk.next().await.map_err(CommandError::failed)? {
        let Some(blob) = object.key.as_ref().and_then(BlobKey::blob) else { continue };
        let needed = match decided {
            Some((hash, needed)) if hash == blob => needed,
            _ => is_needed(&blob, &mut lists).await? || exists(source, blob).await?,
        };
        decided = Some((blob, needed));
        if !needed && object.modified < before {
            backup.delete_at(&object.path).await.map_err(CommandError::failed)?;
            removed += 1;
        }
    }
    Ok(removed)
}

async fn is_needed(blob: &ContentHash, lists: &mut [Contents]) -> Result<bool, CommandError> {
    for list in lists {
        if list.needs(blob).await.map_err(CommandError::failed)? {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn exists(source: &Blobs, blob: ContentHash) -> Result<bool, CommandError> {
    source.exists(&BlobKey::Blob(blob)).await.map_err(CommandError::failed)
}
