//! What killed processes have left: files that were being written, and probes.
//!
//! In a local directory, `object_store` and [`super::upload_file`] write into files with a `#` in their name, which
//! `object_store` does not list, and rename them at the end. With a remote store, bodies arrive in unnamed files, and its lifecycle rules delete unfinished
//! multipart uploads.

use std::{
    fs::{self, DirEntry},
    io,
    path::Path as FilePath,
};

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use object_store::path::Path;
use safelight_domain::ContentHash;

use super::{BlobError, BlobKey, Blobs, Shard, blocking, store::PROBES};

impl Blobs {
    /// Removes remains of uploads that were last written before `before`, and returns their number.
    pub async fn remove_unfinished_uploads(&self, before: DateTime<Utc>) -> Result<u64, BlobError> {
        let Some(folder) = self.incoming.clone() else { return Ok(0) };
        Ok(blocking(move || remove_old(&folder, before)).await?)
    }

    /// The same for blobs and renditions of a shard, also of those that images still need.
    pub async fn remove_unfinished_objects(
        &self,
        shard: Shard,
        before: DateTime<Utc>,
    ) -> Result<u64, BlobError> {
        let Some(root) = self.folder() else { return Ok(0) };
        let folder = root.join(shard.folder().as_ref());
        Ok(blocking(move || remove_old(&folder, before)).await?)
    }

    /// Removes remains of renditions of a blob that no image needs, however new they are.
    pub async fn remove_unfinished_renditions(&self, blob: &ContentHash) -> Result<(), BlobError> {
        let Some(root) = self.folder() else { return Ok(()) };
        let hash = blob.to_string();
        let folder = root.join(BlobKey::RENDITIONS).join(&hash[..2]).join(&hash);
        let sweep = move || {
            remove_old(&folder, DateTime::<Utc>::MAX_UTC)?;
            // Fails if something else is in it.
            let _ = fs::remove_dir(folder);
            Ok(())
        };
        Ok(blocking(sweep).await?)
    }

    /// Deletes what [`Blobs::check_writable`] of processes that died has left, if it was written before `before`.
    pub async fn remove_probes(&self, before: DateTime<Utc>) -> Result<(), BlobError> {
        let mut probes = self.store.list(Some(&Path::from(PROBES)));
        while let Some(probe) = probes.try_next().await? {
            if probe.last_modified < before {
                self.delete_path(&probe.location).await?;
            }
        }
        Ok(())
    }
}

/// Removes the unfinished files of a folder and of its subfolders, and returns their number.
fn remove_old(folder: &FilePath, before: DateTime<Utc>) -> io::Result<u64> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            removed += remove_old(&entry.path(), before)?;
        } else if is_unfinished(&entry, before) {
            // Its writer may rename or remove it meanwhile.
            removed += u64::from(fs::remove_file(entry.path()).is_ok());
        }
    }
    Ok(removed)
}

fn is_unfinished(file: &DirEntry, before: DateTime<Utc>) -> bool {
    let written = || file.metadata().and_then(|meta| meta.modified()).ok();
    file.file_name().to_string_lossy().contains('#')
        && written().is_some_and(|written| DateTime::<Utc>::from(written) < before)
}
