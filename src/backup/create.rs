//! Makes a backup.

use std::time::Instant;

use chrono::Utc;
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use safelight_blobs::{BlobKey, Blobs, Stored};
use safelight_config::{Config, DatabaseUrl};
use safelight_domain::{ContentHash, InstallationId};
use safelight_store::DynStore;
use safelight_store_sql::{BytesState, NeededBytes};
use serde::Serialize;

use super::{
    contents::Contents,
    copying::{self, AT_ONCE, Copied, CopyError},
    database,
    expected_hashes::ExpectedHashes,
    findings::Findings,
    location::{self, Location},
    merge::{Pair, Walk, next_pair},
    prune,
    snapshots::{self, Snapshot},
    verify::Missing,
};
use crate::{
    bootstrap::{installation, services},
    error::CommandError,
};

/// The prefix of folders for temporary files.
const WORKING: &str = ".backup-working-";

/// A store that cannot be read at all would otherwise be tried for every object.
const UNREADABLE_LIMIT: u64 = 100;

/// What a backup consists of.
#[allow(clippy::struct_excessive_bools)] // independent options
pub struct BackupOptions {
    /// Whether a backup may begin in a new place.
    pub init: bool,
    /// How many snapshots to keep.
    pub keep: usize,
    /// Whether renditions are copied.
    pub renditions: bool,
    /// Whether all blobs of the backup are read and compared with their hashes.
    pub verify: bool,
    /// Whether blobs are removed that neither a snapshot nor the store has.
    pub prune: bool,
}

/// What a backup has done.
#[derive(Debug, Default, Serialize)]
pub struct BackupReport {
    /// The snapshot's name.
    pub snapshot: String,
    /// The number of images that it knows.
    pub images: u64,
    /// Objects copied now.
    pub copied: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Objects that were in the backup.
    pub present: u64,
    /// Blobs of the backup that were read and compared with their hashes.
    pub verified: u64,
    /// Blobs of the backup that were damaged, and replaced by good ones.
    pub repaired: u64,
    /// Damaged blobs of the store, which were not copied.
    pub damaged: Findings,
    /// Damaged blobs of the backup that the store does not have.
    pub damaged_in_backup: Findings,
    /// Objects of the store that cannot be read.
    pub unreadable: Findings,
    /// Bytes that images of the snapshot need, and that the backup lacks.
    pub missing: Findings,
    /// Images whose upload failed, and that have no good bytes: only another upload can help them. No fault of the
    /// backup.
    pub lost_uploads: Findings,
    /// Old snapshots removed.
    pub removed_snapshots: usize,
    /// Objects removed that no snapshot needs.
    pub pruned: u64,
    /// How long it took.
    pub seconds: f64,
}

impl BackupReport {
    /// Whether every image of the snapshot has its bytes, and nothing is damaged.
    pub fn is_complete(&self) -> bool {
        let findings = [&self.damaged, &self.damaged_in_backup, &self.unreadable, &self.missing];
        findings.iter().all(|findings| findings.count == 0)
    }
}

/// What copies share.
struct Job<'a> {
    source: &'a Blobs,
    backup: &'a Blobs,
    options: &'a BackupOptions,
    progress: &'a ProgressBar,
}

/// What became of one object.
enum Done {
    Copied(u64),
    Repaired(u64),
    Present { verified: bool },
    Gone,
    Damaged(String),
    DamagedInBackup(String),
    Unreadable(String),
}

/// Makes a backup at `place`.
pub async fn create(
    config: &Config,
    place: &Location,
    options: &BackupOptions,
    progress: &ProgressBar,
) -> Result<BackupReport, CommandError> {
    place.require_separate(config)?;
    let store = open_store(config).await?;
    let result = backed_up(config, &store, place, options, progress).await;
    services::close_store(&store).await;
    result
}

/// The database, without changing its schema.
async fn open_store(config: &Config) -> Result<DynStore, CommandError> {
    if let DatabaseUrl::Sqlite(path) = &config.database_url
        && !path.exists()
    {
        return Err(CommandError::failed(format!("there is no database at {}", path.display()))
            .hint("name it with --config, SAFELIGHT_DATA_DIR or SAFELIGHT_DATABASE_URL"));
    }
    let store = services::connect_store(config).await?;
    if let Err(error) = store.check_schema().await {
        services::close_store(&store).await;
        return Err(services::schema_error(&error));
    }
    Ok(store)
}

async fn backed_up(
    config: &Config,
    store: &DynStore,
    place: &Location,
    options: &BackupOptions,
    progress: &ProgressBar,
) -> Result<BackupReport, CommandError> {
    let started = Instant::now();
    let id = store.installation().await.map_err(CommandError::failed)?.id;
    let source = services::open_blobs(config)?;
    let source = installation::join(source, store, &config.blob_url).await?;
    let backup = open_backup(config, place, options.init, id).await?;
    place.warn_if_open_to_all();
    let working = place.working_folder(config)?;
    let _lock = location::lock(&working)?;
    remove_working_folders(&working)?;

    progress.set_message("database");
    let mut snapshot = dump(config, &backup, &working, id).await?;
    advance(store, &source).await?;
    let mut report = BackupReport {
        snapshot: snapshot.name.clone(),
        images: snapshot.images,
        ..BackupReport::default()
    };
    let job = Job { source: &source, backup: &backup, options, progress };
    safelight_fail_points::hit("backup.dumped").await;
    progress.set_message("uploads in progress");
    job.copy_staged(&snapshot, &mut report).await?;
    progress.set_message("objects");
    job.copy_stored(&snapshot, store, &mut report).await?;
    progress.set_message("check");
    job.find_missing(&snapshot, store, &mut report).await?;

    safelight_fail_points::hit("backup.copied").await;
    snapshot.missing = report.missing.count;
    snapshots::record(&backup, &snapshot).await?;
    report.removed_snapshots = snapshots::remove_old(&backup, options.keep).await?;
    let before = prune::limit(&backup).await?;
    report.pruned = prune::remove_staged(&backup, before).await?;
    if options.prune {
        report.pruned += prune::remove_unneeded(&backup, &source, before).await?;
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Opens the backup. Without `init` it must be there: if its disk is not mounted, a new one would begin below the mount
/// point, every time.
async fn open_backup(
    config: &Config,
    place: &Location,
    init: bool,
    installation: InstallationId,
) -> Result<Blobs, CommandError> {
    if init {
        place.create()?;
        let backup = place.open(config).await?;
        snapshots::begin(&backup, installation).await?;
        return Ok(backup);
    }
    if place.may_have(snapshots::IDENTITY) {
        let backup = place.open(config).await?;
        if snapshots::is_backup_of(&backup, installation).await? {
            return Ok(backup);
        }
    }
    Err(CommandError::failed(format!("there is no backup at {place}"))
        .hint("is its disk mounted? if this is a new place, run once with --init"))
}

/// Makes the database newer than its copy, and the blob store know that: if the copy is restored beside the blob
/// store, its workers notice that they do not know what was stored since.
async fn advance(store: &DynStore, source: &Blobs) -> Result<(), CommandError> {
    let generation = store.advance_generation(0).await.map_err(CommandError::failed)?;
    source.raise_generation(generation).await.map_err(CommandError::failed)
}

/// Copies the database, and lists what its images need.
async fn dump(
    config: &Config,
    backup: &Blobs,
    working: &std::path::Path,
    installation: InstallationId,
) -> Result<Snapshot, CommandError> {
    let folder = tempfile::Builder::new().prefix(WORKING).tempdir_in(working);
    let folder = folder.map_err(|error| {
        CommandError::failed(format!("cannot write to {}: {error}", working.display()))
    })?;
    let (file, list) = (folder.path().join("dump"), folder.path().join("contents"));
    let taken_at = Utc::now();
    let facts = database::dump(&config.database_url, &file, &list).await?;
    if facts.installation != installation {
        return Err(CommandError::failed("the database was replaced meanwhile"));
    }
    let (engine, name) = (database::engine(&config.database_url), snapshots::name_of(taken_at));
    let path = |extension: &str| snapshots::path_of(&name, extension);
    // The list first: as long as a dump has none, nothing may depend on it.
    let contents = put(&list, backup, path("contents")).await?;
    let dump = put(&file, backup, path(engine.extension())).await?;
    Ok(Snapshot {
        taken_at,
        installation,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        engine,
        schema_version: facts.schema_version,
        images: facts.images,
        missing: 0,
        dump,
        contents,
        name,
    })
}

async fn put(
    file: &std::path::Path,
    backup: &Blobs,
    target: String,
) -> Result<copying::SnapshotFile, CommandError> {
    copying::put_file(file, backup, target).await.map_err(|error| failed_copy(&error))
}

fn failed_copy(error: &CopyError) -> CommandError {
    let failed = CommandError::failed(error);
    match error {
        CopyError::Write { error: safelight_blobs::BlobError::Full, .. } => failed
            .hint("make space where the backup is, or keep fewer snapshots, then run it again"),
        _ => failed.hint("run it again: what was copied is kept"),
    }
}

/// Removes what backups left that were killed. The lock is held.
fn remove_working_folders(working: &std::path::Path) -> Result<(), CommandError> {
    let removed = (|| {
        for entry in std::fs::read_dir(working)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(WORKING) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok::<_, std::io::Error>(())
    })();
    removed.map_err(|error| {
        CommandError::failed(format!("cannot clean up {}: {error}", working.display()))
    })
}

impl Job<'_> {
    /// Copies the bytes of uploads that the snapshot has as unfinished, or as failed but fit to be retried. Those that
    /// are stored meanwhile are found among the blobs.
    async fn copy_staged(
        &self,
        snapshot: &Snapshot,
        report: &mut BackupReport,
    ) -> Result<(), CommandError> {
        let contents = Contents::open(self.backup, &snapshot.contents.path).await;
        let contents = contents.map_err(CommandError::failed)?;
        let staged = stream::try_unfold(contents, async |mut contents| {
            while let Some(needed) = contents.next().await.map_err(CommandError::failed)? {
                if needed.state != BytesState::Stored {
                    return Ok(Some((needed, contents)));
                }
            }
            Ok(None)
        });
        let copies = staged.map_ok(|needed| self.copy_staged_one(needed));
        self.collect(copies.try_buffer_unordered(AT_ONCE), report).await
    }

    async fn copy_staged_one(&self, needed: NeededBytes) -> Result<Done, CommandError> {
        let key = BlobKey::Incoming(needed.image);
        let path = key.path().to_string();
        if self.backup.size(&key).await.map_err(CommandError::failed)? == Some(needed.bytes) {
            return Ok(Done::Present { verified: false });
        }
        let expected = Some(needed.sha256);
        let copied = copying::copy((self.source, &path), (self.backup, &path), expected).await;
        match copied {
            // That may be why it failed.
            Ok(Copied::Damaged) if needed.state == BytesState::Failed => Ok(Done::Gone),
            other => self.outcome(other, path),
        }
    }

    /// Copies the blobs and renditions that the backup does not have.
    async fn copy_stored(
        &self,
        snapshot: &Snapshot,
        store: &DynStore,
        report: &mut BackupReport,
    ) -> Result<(), CommandError> {
        let walk = |store: &Blobs| Walk::new(store, self.options.renditions);
        let contents = Contents::open(self.backup, &snapshot.contents.path).await;
        let expected = ExpectedHashes::new(contents.map_err(CommandError::failed)?, store);
        let start = (walk(self.source), walk(self.backup), expected);
        let pairs = stream::try_unfold(start, async |(mut source, mut backup, mut hashes)| {
            let pair = next_pair(&mut source, &mut backup).await.map_err(|error| {
                CommandError::failed(format!("cannot list the stored objects: {error}"))
            })?;
            let Some(pair) = pair else { return Ok(None) };
            let expected = match pair.to_copy().and_then(|object| object.key.as_ref()) {
                Some(key) => hashes.of(key).await?,
                None => None,
            };
            Ok(Some(((pair, expected), (source, backup, hashes))))
        });
        let copies = pairs.map_ok(|(pair, expected)| self.copy_stored_one(pair, expected));
        self.collect(copies.try_buffer_unordered(AT_ONCE), report).await
    }

    async fn copy_stored_one(
        &self,
        pair: Pair,
        expected: Option<ContentHash>,
    ) -> Result<Done, CommandError> {
        match pair {
            Pair::First(object) => self.copy_object(object, expected).await,
            Pair::Both(object, copy) if object.bytes != copy.bytes => {
                self.copy_object(object, expected).await
            }
            Pair::Both(object, copy) => match self.is_intact(&copy).await? {
                None => Ok(Done::Present { verified: false }),
                Some(true) => Ok(Done::Present { verified: true }),
                Some(false) => match self.copy_object(object, expected).await? {
                    Done::Copied(bytes) => Ok(Done::Repaired(bytes)),
                    Done::Gone => Ok(Done::DamagedInBackup(copy.path)),
                    other => Ok(other),
                },
            },
            Pair::Second(copy) => match self.is_intact(&copy).await? {
                None => Ok(Done::Gone),
                Some(true) => Ok(Done::Present { verified: true }),
                Some(false) => Ok(Done::DamagedInBackup(copy.path)),
            },
        }
    }

    /// Whether a blob of the backup has the bytes of its name; `None` if that is not asked.
    async fn is_intact(&self, copy: &Stored) -> Result<Option<bool>, CommandError> {
        let hash = match copy.key {
            Some(BlobKey::Blob(hash)) if self.options.verify => hash,
            _ => return Ok(None),
        };
        let (found, _) = self.backup.hash(&BlobKey::Blob(hash)).await.map_err(|error| {
            CommandError::failed(format!("cannot read {} of the backup: {error}", copy.path))
        })?;
        Ok(Some(found == hash))
    }

    /// Copies an object that has its `expected` hash. A rendition that has not, or that no image of the snapshot has,
    /// is left out: its next reader gets it made again.
    async fn copy_object(
        &self,
        object: Stored,
        expected: Option<ContentHash>,
    ) -> Result<Done, CommandError> {
        if expected.is_none() {
            return Ok(Done::Gone);
        }
        let (from, to) = ((self.source, &*object.path), (self.backup, &*object.path));
        match (copying::copy(from, to, expected).await, object.key) {
            (Ok(Copied::Damaged), Some(BlobKey::Rendition { .. })) => Ok(Done::Gone),
            (result, _) => self.outcome(result, object.path),
        }
    }

    /// An object that cannot be read does not end the backup; one that cannot be written does.
    #[allow(clippy::unused_self)] // beside its callers
    fn outcome(
        &self,
        result: Result<Copied, CopyError>,
        path: String,
    ) -> Result<Done, CommandError> {
        match result {
            Ok(Copied::Whole(bytes)) => Ok(Done::Copied(bytes)),
            Ok(Copied::Gone) => Ok(Done::Gone),
            Ok(Copied::Damaged) => Ok(Done::Damaged(path)),
            Err(error @ CopyError::Read { .. }) => Ok(Done::Unreadable(error.to_string())),
            Err(error @ CopyError::Write { .. }) => Err(failed_copy(&error)),
        }
    }

    async fn collect(
        &self,
        copies: impl stream::Stream<Item = Result<Done, CommandError>>,
        report: &mut BackupReport,
    ) -> Result<(), CommandError> {
        let mut copies = std::pin::pin!(copies);
        while let Some(done) = copies.next().await {
            self.progress.inc(1);
            report.add(done?);
            if report.unreadable.count >= UNREADABLE_LIMIT {
                let last = report.unreadable.named.last().cloned().unwrap_or_default();
                return Err(CommandError::failed(format!(
                    "too many objects are unreadable: {last}"
                ))
                .hint("is the blob store available? then run it again: what was copied is kept"));
            }
        }
        Ok(())
    }

    /// Finds what images of the snapshot need and the backup lacks.
    async fn find_missing(
        &self,
        snapshot: &Snapshot,
        store: &DynStore,
        report: &mut BackupReport,
    ) -> Result<(), CommandError> {
        let contents = Contents::open(self.backup, &snapshot.contents.path).await;
        let contents = contents.map_err(CommandError::failed)?;
        let mut missing = Missing::new(self.backup, contents);
        while let Some(needed) = missing.next().await? {
            // While it was looked for, it may have been on the way to its place, or in the trash and back.
            let path = BlobKey::Blob(needed.sha256).path().to_string();
            let expected = Some(needed.sha256);
            let again = copying::copy((self.source, &path), (self.backup, &path), expected).await;
            match self.outcome(again, path)? {
                Done::Copied(bytes) => report.add(Done::Copied(bytes)),
                // Its image may have been deleted since.
                _ if !store
                    .is_blob_wanted(&needed.sha256)
                    .await
                    .map_err(CommandError::failed)? => {}
                _ if needed.state == BytesState::Failed => {
                    report.lost_uploads.add(needed.image.to_string());
                }
                _ => report.missing.add(format!("{} (image {})", needed.sha256, needed.image)),
            }
        }
        Ok(())
    }
}

impl BackupReport {
    fn add(&mut self, done: Done) {
        match done {
            Done::Copied(bytes) => {
                self.copied += 1;
                self.copied_bytes += bytes;
            }
            Done::Repaired(bytes) => {
                self.copied += 1;
                self.copied_bytes += bytes;
                self.verified += 1;
                self.repaired += 1;
            }
            Done::Present { verified } => {
                self.present += 1;
                self.verified += u64::from(verified);
            }
            Done::Gone => {}
            Done::Damaged(path) => self.damaged.add(path),
            Done::DamagedInBackup(path) => self.damaged_in_backup.add(path),
            Done::Unreadable(what) => self.unreadable.add(what),
        }
    }
}
