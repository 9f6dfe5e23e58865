//! Copies of the database in a file, and files to restore.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
    sync::Arc,
};

use futures::{TryStreamExt, future::BoxFuture};
use safelight_store::StoreError;
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{
    disk_space::DiskSpace, fs_permissions, patience::PATIENCE, snapshot_rows, store::lock_path,
};
use crate::snapshot::{NeededBytes, SnapshotFacts};

/// Writes a copy of the database in the file `path`, as it is at one moment, to the new file `copy`, and calls `each`
/// for the bytes that its images need, ordered by hash. Uploads continue meanwhile: the copy is made from a reading
/// connection. The write-ahead log cannot be emptied until it is made, so it grows by what is written in that time.
pub async fn snapshot(
    path: &Path,
    copy: &Path,
    each: impl FnMut(NeededBytes) -> io::Result<()>,
) -> Result<SnapshotFacts, StoreError> {
    // The copy gets the permissions of this file.
    drop(fs_permissions::make_file(copy).map_err(|error| failed_to_write(copy, &error))?);
    let mut conn = existing(path).read_only(true).connect().await?;
    let target = copy.to_string_lossy().into_owned();
    let copied = sqlx::query("vacuum into $1").bind(target).execute(&mut conn).await;
    copied.map_err(|error| match DiskSpace::of(copy).explain(error.into()) {
        StoreError::Full(cause) => {
            failed_to_write(copy, &io::Error::new(io::ErrorKind::StorageFull, cause.to_string()))
        }
        other => other,
    })?;
    conn.close().await?;
    complete(copy, each).await
}

/// Checks the copy `path`, and calls `each` for the bytes that its images need, ordered by hash. Writes nothing beside
/// it.
pub async fn complete(
    path: &Path,
    mut each: impl FnMut(NeededBytes) -> io::Result<()>,
) -> Result<SnapshotFacts, StoreError> {
    let mut conn = existing(path).read_only(true).immutable(true).connect().await?;
    let found: String = sqlx::query_scalar("pragma quick_check(1)").fetch_one(&mut conn).await?;
    if found != "ok" {
        return Err(StoreError::Corrupt(format!("{}: {found}", path.display())));
    }
    let facts = snapshot_rows::facts(&mut conn).await?;
    {
        let mut needed = snapshot_rows::needed(&mut conn);
        while let Some(bytes) = needed.try_next().await? {
            each(bytes).map_err(|error| failed_to_write(path, &error))?;
        }
    }
    conn.close().await?;
    Ok(facts)
}

/// Whether the database in the file `path` has images. `false` if it does not exist or is empty.
pub async fn has_images(path: &Path) -> Result<bool, StoreError> {
    if !path.metadata().is_ok_and(|found| found.len() > 0) {
        return Ok(false);
    }
    let mut conn = existing(path).connect().await?;
    let found = any_image(&mut conn).await;
    // Also empties and removes its log.
    conn.close().await?;
    found
}

fn any_image(conn: &mut SqliteConnection) -> BoxFuture<'_, Result<bool, StoreError>> {
    Box::pin(async move {
        let query = "select exists (select 1 from sqlite_schema where name = 'images')";
        let has_table: bool = sqlx::query_scalar(query).fetch_one(&mut *conn).await?;
        if !has_table {
            return Ok(false);
        }
        let query = "select exists (select 1 from images)";
        Ok(sqlx::query_scalar(query).fetch_one(conn).await?)
    })
}

/// Locks the database in the file `path`, which need not exist, as a process does that works on it. The lock ends with
/// the file; `None` if another process has it.
pub fn lock(path: &Path) -> io::Result<Option<File>> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs_permissions::make_folder(folder)?;
    }
    try_lock(&lock_path(path))
}

/// Creates and locks a file; `None` if another process has locked it.
pub(super) fn try_lock(lock: &Path) -> io::Result<Option<File>> {
    let file = File::create(lock)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn existing(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).busy_timeout(PATIENCE)
}

fn failed_to_write(path: &Path, error: &io::Error) -> StoreError {
    let text = format!("{}: {error}", path.display());
    let cause = Arc::new(io::Error::new(error.kind(), text));
    if error.kind() == io::ErrorKind::StorageFull {
        StoreError::Full(cause)
    } else {
        StoreError::Unavailable(cause)
    }
}
