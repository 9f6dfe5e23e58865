//! The database's part of a snapshot: written to a local file, and restored from one.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use chrono::Utc;
use futures::TryStreamExt;
use safelight_blobs::Blobs;
use safelight_config::DatabaseUrl;
use safelight_domain::ContentHasher;
use safelight_store::StoreError;
use safelight_store_sql::{
    SnapshotFacts,
    postgres::{self as pg, PostgresSnapshot},
    sqlite,
};

use super::{
    contents::ContentsWriter,
    copying::SnapshotFile,
    postgres,
    snapshots::{self, Engine},
};
use crate::error::CommandError;

/// The engine of a database.
pub fn engine(url: &DatabaseUrl) -> Engine {
    match url {
        DatabaseUrl::Sqlite(_) => Engine::Sqlite,
        DatabaseUrl::Postgres(_) => Engine::Postgresql,
    }
}

/// Writes a copy of the database, as it is at one moment, to the new file `dump`, and the list of the bytes that its
/// images need to the new file `contents`.
pub async fn dump(
    url: &DatabaseUrl,
    dump: &Path,
    contents: &Path,
) -> Result<SnapshotFacts, CommandError> {
    let mut list = ContentsWriter::create(contents).map_err(|error| unwritable(&error))?;
    let each = |needed| list.add(&needed);
    let facts = match url {
        DatabaseUrl::Sqlite(path) => {
            sqlite::snapshot(path, dump, each).await.map_err(|error| uncopied(&error))?
        }
        DatabaseUrl::Postgres(urls) => {
            let url = pg::server_in_use(urls).await.map_err(|error| uncopied(&error))?;
            let mut view = PostgresSnapshot::begin(url).await.map_err(|error| uncopied(&error))?;
            postgres::dump(url, view.server_version(), view.name(), dump).await?;
            let facts = view.read(each).await.map_err(|error| uncopied(&error))?;
            // Nothing was written, so an error on the way out means nothing.
            let _ = view.end().await;
            facts
        }
    };
    list.finish().map_err(|error| unwritable(&error))?;
    Ok(facts)
}

fn uncopied(error: &StoreError) -> CommandError {
    match error {
        // A local file; the driver's own errors are of another type.
        StoreError::Full(cause) | StoreError::Unavailable(cause) if cause.is::<io::Error>() => {
            unwritable(error)
        }
        _ => CommandError::failed(format!("cannot copy the database: {error}")),
    }
}

/// An error of a local file.
fn unwritable(error: &dyn std::fmt::Display) -> CommandError {
    CommandError::failed(format!("cannot copy the database: {error}"))
        .hint("is there space for a copy where the backup is made?")
}

/// A place for a database to restore, which nobody uses.
pub enum Target {
    /// A file. Locked, so that no server starts on it meanwhile.
    Sqlite { path: PathBuf, _lock: File },
    /// An empty database.
    Postgres(String),
}

impl Target {
    /// Claims the database that `url` names. Rejects one that is in use, and, unless `force` is set, one with images.
    pub async fn claim(url: &DatabaseUrl, force: bool) -> Result<Self, CommandError> {
        match url {
            DatabaseUrl::Sqlite(path) => Self::claim_file(path, force).await,
            DatabaseUrl::Postgres(urls) => {
                let address = pg::server_in_use(urls).await.map_err(CommandError::failed)?;
                if pg::has_tables(address).await.map_err(CommandError::failed)? {
                    return Err(CommandError::failed(format!("the database {url} is not empty"))
                        .hint(
                            "create an empty one (`createdb NAME`) and name it in database_url",
                        ));
                }
                Ok(Self::Postgres(address.clone()))
            }
        }
    }

    async fn claim_file(path: &Path, force: bool) -> Result<Self, CommandError> {
        let shown = path.display();
        let lock = sqlite::lock(path)
            .map_err(|error| CommandError::failed(format!("cannot lock {shown}: {error}")))?;
        let lock = lock.ok_or_else(|| {
            CommandError::failed(format!("a server runs on {shown}")).hint("stop it first")
        })?;
        let has_images = match sqlite::has_images(path).await {
            Ok(found) => found,
            // Whatever it is, `force` puts it aside.
            Err(StoreError::Database(_)) => true,
            Err(error) => {
                return Err(CommandError::failed(format!("cannot read {shown}: {error}")));
            }
        };
        if has_images && !force {
            return Err(CommandError::failed(format!("the database {shown} has images")).hint(
                "restore into a new data_dir, or replace it with --force, which keeps it under another name",
            ));
        }
        Ok(Self::Sqlite { path: path.to_owned(), _lock: lock })
    }

    /// The file that the copy of the database is written to before it is restored.
    pub fn temporary_file(&self, working: &Path) -> PathBuf {
        match self {
            // In the same folder, so that it can be renamed.
            Self::Sqlite { path, .. } => with_suffix(path, ".restoring"),
            Self::Postgres(_) => working.join("restoring.pgdump"),
        }
    }

    /// Makes the file `copy` the database, as a whole or not at all. Returns where the earlier database is, if there
    /// was one.
    pub async fn install(self, copy: &Path) -> Result<Option<PathBuf>, CommandError> {
        match self {
            Self::Sqlite { path, .. } => {
                // The time, because a snapshot may be restored twice.
                let aside =
                    with_suffix(&path, &format!(".before-{}", snapshots::name_of(Utc::now())));
                let was_kept = replace(&path, copy, &aside).map_err(|error| {
                    CommandError::failed(format!("cannot replace {}: {error}", path.display()))
                })?;
                Ok(was_kept.then_some(aside))
            }
            Self::Postgres(url) => {
                postgres::restore(&url, copy).await?;
                fs::remove_file(copy).map_err(CommandError::failed)?;
                Ok(None)
            }
        }
    }
}

/// Puts `copy` in the place of the SQLite file `path`, whose log must not be applied to it. Whatever is there is kept
/// as `aside`, which must not exist, and its log beside it. Returns whether there was anything.
fn replace(path: &Path, copy: &Path, aside: &Path) -> io::Result<bool> {
    const PARTS: [&str; 3] = ["-wal", "-shm", ""];
    for part in PARTS {
        let name = with_suffix(aside, part);
        if fs::symlink_metadata(&name).is_ok() {
            let text = format!("{} exists already", name.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
    }
    // A database may be in its log alone.
    let has = |part| fs::metadata(with_suffix(path, part)).is_ok_and(|found| found.len() > 0);
    let keep = has("") || has("-wal");
    for part in PARTS {
        let from = with_suffix(path, part);
        let moved =
            if keep { fs::rename(&from, with_suffix(aside, part)) } else { fs::remove_file(&from) };
        match moved {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(copy, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(keep)
}

/// Copies a file of a snapshot to the local file `target`, durably and for this user alone. Fails if it is damaged.
pub async fn fetch(backup: &Blobs, file: &SnapshotFile, target: &Path) -> Result<(), CommandError> {
    let failed = |error: &dyn std::fmt::Display| {
        CommandError::failed(format!("cannot copy {} to {}: {error}", file.path, target.display()))
    };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut local = options.open(target).map_err(|error| failed(&error))?;
    let (_, mut content) = backup.open_path(&file.path).await.map_err(|error| failed(&error))?;
    let mut hasher = ContentHasher::default();
    while let Some(chunk) = content.try_next().await.map_err(|error| failed(&error))? {
        hasher.update(&chunk);
        local.write_all(&chunk).map_err(|error| failed(&error))?;
    }
    if hasher.finish() != file.sha256 {
        return Err(CommandError::failed(format!("{} is damaged", file.path))
            .hint("restore an older snapshot with --at"));
    }
    local.sync_all().map_err(|error| failed(&error))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaced_database_is_kept_with_its_own_log() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        for (name, text) in [("db", "old"), ("db-wal", "old log"), ("db.restoring", "new")] {
            fs::write(at(name), text).expect("written");
        }
        assert!(replace(&at("db"), &at("db.restoring"), &at("db.before-x")).expect("replaced"));
        let read = |name: &str| fs::read_to_string(at(name)).ok();
        assert_eq!(read("db").as_deref(), Some("new"));
        assert_eq!(read("db.before-x").as_deref(), Some("old"));
        assert_eq!(read("db.before-x-wal").as_deref(), Some("old log"));
        assert_eq!((read("db-wal"), read("db.restoring")), (None, None));

        // What was put aside before is never replaced.
        fs::write(at("db.restoring"), "newer").expect("written");
        let taken = replace(&at("db"), &at("db.restoring"), &at("db.before-x"));
        assert_eq!(taken.expect_err("a name that is taken").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read("db").as_deref(), Some("new"));
        assert_eq!(read("db.before-x").as_deref(), Some("old"));
        assert!(replace(&at("db"), &at("db.restoring"), &at("db.before-y")).expect("replaced"));
        assert_eq!(read("db").as_deref(), Some("newer"));
        assert_eq!(read("db.before-y").as_deref(), Some("new"));

        // An empty file is not worth keeping.
        fs::write(at("empty"), "").expect("written");
        fs::write(at("empty.restoring"), "new").expect("written");
        let kept = replace(&at("empty"), &at("empty.restoring"), &at("empty.before-x"));
        assert!(!kept.expect("replaced"));
        assert_eq!((read("empty").as_deref(), read("empty.before-x")), (Some("new"), None));
    }
}
