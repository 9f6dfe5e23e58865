//! Detects a full disk where SQLite reports something else.
//!
//! SQLite reports `SQLITE_FULL` only for a write that finds no space. Where it cannot grow its shared memory, create
//! its log or sync, it reports a failed call or a file that cannot be opened
//! (<https://www.sqlite.org/rescode.html>, `SQLITE_IOERR_SHMSIZE` and others).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use safelight_store::{Cause, StoreError};

/// With less space than this, the disk is full. The log grows by pages, the shared memory by 32 KiB.
const FULL_BELOW_BYTES: u64 = 1 << 20;

/// Primary result codes that a full disk can cause: `SQLITE_IOERR` and `SQLITE_CANTOPEN`.
const SUSPECTS: [i32; 2] = [10, 14];

/// The file system of the database.
#[derive(Clone)]
pub struct DiskSpace(Arc<PathBuf>);

impl DiskSpace {
    /// That of the file `database`.
    pub fn of(database: &Path) -> Self {
        let folder = database.parent().filter(|folder| !folder.as_os_str().is_empty());
        Self(Arc::new(folder.unwrap_or(Path::new(".")).to_owned()))
    }

    /// The error with its real cause.
    pub fn explain(&self, error: StoreError) -> StoreError {
        explain(error, || self.is_full())
    }

    fn is_full(&self) -> bool {
        rustix::fs::statvfs(&*self.0).is_ok_and(|found| {
            // Some file systems have no limited number of files, and report 0 of 0.
            let no_files = found.f_files > 0 && found.f_favail == 0;
            no_files || found.f_bavail.saturating_mul(found.f_frsize) < FULL_BELOW_BYTES
        })
    }
}

fn explain(error: StoreError, is_full: impl FnOnce() -> bool) -> StoreError {
    match error {
        StoreError::Unavailable(cause) if is_suspect(&cause) && is_full() => {
            StoreError::Full(cause)
        }
        other => other,
    }
}

fn is_suspect(cause: &Cause) -> bool {
    let code = cause
        .downcast_ref::<sqlx::Error>()
        .and_then(sqlx::Error::as_database_error)
        .and_then(sqlx::error::DatabaseError::code);
    // The low byte of an extended code is the primary one.
    code.and_then(|code| code.parse::<i32>().ok())
        .is_some_and(|code| SUSPECTS.contains(&(code & 0xFF)))
}

#[cfg(test)]
mod tests {
    use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};

    use super::*;

    #[tokio::test]
    async fn file_that_cannot_be_opened_on_a_full_disk_is_a_full_disk() {
        let missing = SqliteConnectOptions::new().filename("/nonexistent/safelight.db");
        let error =
            || async { StoreError::from(missing.connect().await.expect_err("no such file")) };
        assert!(matches!(error().await, StoreError::Unavailable(_)));
        assert!(explain(error().await, || true).is_full());
        assert!(!explain(error().await, || false).is_full());
    }

    #[test]
    fn other_errors_stay_what_they_are() {
        let closed = StoreError::from(sqlx::Error::PoolClosed);
        assert!(!explain(closed, || true).is_full());
        let database = DiskSpace::of(Path::new("safelight.db"));
        assert_eq!(database.0.as_path(), Path::new("."));
    }
}
