//! The snapshots of a backup, and the installation that it belongs to.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use futures::TryStreamExt;
use safelight_blobs::{BlobError, Blobs};
use safelight_domain::InstallationId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::copying::SnapshotFile;
use crate::error::CommandError;

/// The object with the installation.
pub const IDENTITY: &str = "backup.json";

/// The folder of snapshots.
pub const FOLDER: &str = "database";

/// The version of the layout.
const FORMAT: u32 = 1;

/// The size limit of the JSON objects.
const JSON_BYTES: u64 = 1 << 20;

/// A snapshot without its JSON is the rest of a backup that was interrupted, once it is this old.
const UNFINISHED: TimeDelta = TimeDelta::days(1);

/// How names show the time, so that they sort by it.
const NAME: &str = "%Y%m%dT%H%M%S%.3fZ";

/// Whose backup it is.
#[derive(Serialize, Deserialize)]
struct Identity {
    installation: InstallationId,
    format: u32,
}

/// A database's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    Sqlite,
    Postgresql,
}

impl Engine {
    /// The extension of its dumps.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgresql => "pgdump",
        }
    }
}

/// A copy of the database, and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name: the time at which it was begun.
    pub name: String,
    /// The same time.
    pub taken_at: DateTime<Utc>,
    /// The installation.
    pub installation: InstallationId,
    /// The release that made it.
    pub release: String,
    /// The database.
    pub engine: Engine,
    /// Its newest migration.
    pub schema_version: i64,
    /// The number of images.
    pub images: u64,
    /// How many of them had no good bytes, neither in the store nor in the backup.
    pub missing: u64,
    /// The copy of the database.
    pub dump: SnapshotFile,
    /// The list of the bytes that its images need.
    pub contents: SnapshotFile,
}

/// The name of a snapshot that is begun now.
pub fn name_of(time: DateTime<Utc>) -> String {
    time.format(NAME).to_string()
}

/// The path of a file of a snapshot.
pub fn path_of(name: &str, extension: &str) -> String {
    format!("{FOLDER}/{name}.{extension}")
}

/// Whether the place has the backup of an installation. Rejects another's.
pub async fn is_backup_of(
    backup: &Blobs,
    installation: InstallationId,
) -> Result<bool, CommandError> {
    let Some(found) = read_json::<Identity>(backup, IDENTITY).await? else { return Ok(false) };
    if found.format > FORMAT {
        return Err(CommandError::failed("a newer release has made this backup")
            .hint("run a newer safelight"));
    }
    if found.installation != installation {
        return Err(CommandError::failed(format!(
            "this is the backup of another installation ({})",
            found.installation
        ))
        .hint("choose an empty place for each installation"));
    }
    Ok(true)
}

/// Starts a backup of an installation in a new place, or goes on with the one that is there.
pub async fn begin(backup: &Blobs, installation: InstallationId) -> Result<(), CommandError> {
    let failed = |error| CommandError::failed(format!("cannot read {IDENTITY}: {error}"));
    if is_backup_of(backup, installation).await? {
        return Ok(());
    }
    let mut cursor = None;
    loop {
        let walked = backup.walk(cursor.as_deref(), 1).await.map_err(failed)?;
        if !walked.objects.is_empty() {
            return Err(CommandError::failed("there are pictures in this place, and no backup")
                .hint("choose an empty place for each installation"));
        }
        match walked.next {
            Some(next) => cursor = Some(next),
            None => break,
        }
    }
    write_json(backup, IDENTITY, &Identity { installation, format: FORMAT }).await
}

/// All snapshots, newest first.
pub async fn list(backup: &Blobs) -> Result<Vec<Snapshot>, CommandError> {
    let files = files(backup).await?;
    let names = files.iter().filter(|path| path.strip_suffix(".json").is_some()).rev();
    let mut snapshots = Vec::new();
    for path in names {
        // Another process may have removed it meanwhile.
        snapshots.extend(read_json::<Snapshot>(backup, path).await?);
    }
    Ok(snapshots)
}

/// Records a snapshot, which counts from now on. Fails if the place is not the backup any more.
pub async fn record(backup: &Blobs, snapshot: &Snapshot) -> Result<(), CommandError> {
    if !is_backup_of(backup, snapshot.installation).await? {
        return Err(CommandError::failed(format!("{IDENTITY} is gone: the backup is another place now"))
            .hint("was its disk unmounted meanwhile? mount it, remove what was written instead, and run it again"));
    }
    write_json(backup, &path_of(&snapshot.name, "json"), snapshot).await
}

/// Removes all snapshots but the newest `keep`, and the rests of interrupted backups. Returns how many snapshots.
pub async fn remove_old(backup: &Blobs, keep: usize) -> Result<usize, CommandError> {
    let failed = |error| CommandError::failed(format!("cannot remove an old snapshot: {error}"));
    let snapshots = list(backup).await?;
    let old = snapshots.get(keep..).unwrap_or_default();
    for snapshot in old {
        // A snapshot without its JSON does not count.
        let json = path_of(&snapshot.name, "json");
        for path in [&json, &snapshot.dump.path, &snapshot.contents.path] {
            backup.delete_at(path).await.map_err(failed)?;
        }
    }
    let names: BTreeSet<_> = snapshots.iter().map(|snapshot| snapshot.name.as_str()).collect();
    let before = name_of(Utc::now() - UNFINISHED);
    for path in files(backup).await? {
        let name = stem(&path);
        if !names.contains(name) && name < before.as_str() {
            backup.delete_at(&path).await.map_err(failed)?;
        }
    }
    Ok(old.len())
}

/// The lists of all snapshots, also of those that are being made.
pub async fn lists(backup: &Blobs) -> Result<Vec<String>, CommandError> {
    let mut files: Vec<_> = files(backup).await?.into_iter().collect();
    files.retain(|path| path.ends_with(".contents"));
    Ok(files)
}

async fn files(backup: &Blobs) -> Result<BTreeSet<String>, CommandError> {
    let listed = backup.list_folder(FOLDER).map_ok(|(path, _)| path).try_collect().await;
    listed.map_err(|error| CommandError::failed(format!("cannot list the snapshots: {error}")))
}

/// The name of the snapshot that a file belongs to.
fn stem(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or_default();
    file.rsplit_once('.').map_or(file, |(stem, _)| stem)
}

/// A small JSON object; `None` if it does not exist.
pub async fn read_json<T: DeserializeOwned>(
    store: &Blobs,
    path: &str,
) -> Result<Option<T>, CommandError> {
    let failed = |error: String| CommandError::failed(format!("cannot read {path}: {error}"));
    let (bytes, mut content) = match store.open_path(path).await {
        Ok(opened) => opened,
        Err(BlobError::NotFound) => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    if bytes > JSON_BYTES {
        return Err(failed(format!("it has {bytes} bytes")));
    }
    let mut text = Vec::new();
    while let Some(chunk) = content.try_next().await.map_err(|error| failed(error.to_string()))? {
        text.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&text).map(Some).map_err(|error| failed(error.to_string()))
}

/// Writes a small JSON object.
pub async fn write_json(
    store: &Blobs,
    path: &str,
    value: &impl Serialize,
) -> Result<(), CommandError> {
    let failed = |error: String| CommandError::failed(format!("cannot write {path}: {error}"));
    let text = serde_json::to_vec_pretty(value).map_err(|error| failed(error.to_string()))?;
    let mut writer = store.write_path(path);
    let written = async {
        writer.write(&text).await?;
        writer.finish().await
    };
    written.await.map_err(|error: BlobError| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use safelight_blobs::BlobLocation;
    use safelight_domain::ContentHash;
    use uuid::Uuid;

    use super::*;

    fn snapshot(time: DateTime<Utc>) -> Snapshot {
        let name = name_of(time);
        let file = |extension: &str| SnapshotFile {
            path: path_of(&name, extension),
            bytes: 1,
            sha256: ContentHash::of(b"x"),
        };
        Snapshot {
            taken_at: time,
            installation: InstallationId(Uuid::nil()),
            release: "1.2.3".to_owned(),
            engine: Engine::Sqlite,
            schema_version: 12,
            images: 3,
            missing: 0,
            dump: file("sqlite"),
            contents: file("contents"),
            name,
        }
    }

    async fn put(backup: &Blobs, path: &str) {
        let mut writer = backup.write_path(path);
        writer.write(b"x").await.expect("written");
        writer.finish().await.expect("written");
    }

    #[tokio::test]
    async fn newest_snapshots_are_kept_and_interrupted_ones_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let location = BlobLocation::Folder(folder.path().to_owned());
        let backup = Blobs::open(&location, folder.path()).expect("opened");
        begin(&backup, InstallationId(Uuid::nil())).await.expect("a new place");
        let now = Utc::now();
        let all: Vec<_> = (0..5).map(|days| snapshot(now - TimeDelta::days(days))).collect();
        for one in &all {
            put(&backup, &one.dump.path).await;
            put(&backup, &one.contents.path).await;
            record(&backup, one).await.expect("recorded");
        }
        let interrupted =
            path_of(&name_of(now - TimeDelta::days(3) + TimeDelta::hours(1)), "sqlite");
        let running = path_of(&name_of(now - TimeDelta::hours(1)), "contents");
        put(&backup, &interrupted).await;
        put(&backup, &running).await;

        assert_eq!(remove_old(&backup, 2).await.expect("removed"), 3);
        assert_eq!(list(&backup).await.expect("listed"), all[..2]);
        let left = files(&backup).await.expect("listed");
        assert!(left.contains(&running) && !left.contains(&interrupted), "{left:?}");
        assert_eq!(left.len(), 7, "{left:?}");
    }

    #[tokio::test]
    async fn place_belongs_to_one_installation() {
        let folder = tempfile::tempdir().expect("folder");
        let location = BlobLocation::Folder(folder.path().to_owned());
        let backup = Blobs::open(&location, folder.path()).expect("opened");
        let (own, other) = (InstallationId(Uuid::nil()), InstallationId(Uuid::max()));
        assert!(!is_backup_of(&backup, own).await.expect("an empty place"));
        begin(&backup, own).await.expect("an empty place");
        begin(&backup, own).await.expect("the same installation");
        assert!(is_backup_of(&backup, own).await.expect("the same installation"));
        assert!(begin(&backup, other).await.is_err());
        assert!(is_backup_of(&backup, other).await.is_err());
    }

    #[tokio::test]
    async fn snapshot_is_not_recorded_in_a_place_that_was_unmounted_meanwhile() {
        let folder = tempfile::tempdir().expect("folder");
        let location = BlobLocation::Folder(folder.path().to_owned());
        let backup = Blobs::open(&location, folder.path()).expect("opened");
        begin(&backup, InstallationId(Uuid::nil())).await.expect("a new place");
        backup.delete_at(IDENTITY).await.expect("deleted");
        assert!(record(&backup, &snapshot(Utc::now())).await.is_err());
        assert!(list(&backup).await.expect("listed").is_empty());
    }
}
