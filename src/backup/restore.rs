//! Restores a snapshot: the bytes first, the database last, so that it can be repeated when it was interrupted.

use std::time::Instant;

use chrono::{DateTime, Utc};
use futures::{Stream, TryStreamExt, stream};
use indicatif::ProgressBar;
use safelight_blobs::{BlobError, BlobKey, Blobs, WrongStore};
use safelight_config::{BlobUrl, Config};
use safelight_domain::{ContentHash, InstallationId};
use safelight_store_sql::{BytesState, NeededBytes, sqlite};
use serde::Serialize;

use super::{
    contents::Contents,
    copying::{self, AT_ONCE, Copied},
    database::{self, Target},
    findings::Findings,
    location::{Location, make_private_folder},
    merge::Walk,
    snapshots::{self, Engine, Snapshot},
    verify::Missing,
};
use crate::{
    bootstrap::{checks, installation, services},
    error::CommandError,
};

/// Which snapshot to restore, and whether over another database.
pub struct RestoreOptions {
    /// The name of a snapshot, or a time: the newest one that is not later. The newest if `None`.
    pub at: Option<String>,
    /// Whether a database with images is put aside.
    pub force: bool,
}

/// What was restored.
#[derive(Debug, Default, Serialize)]
pub struct RestoreReport {
    /// The snapshot's name.
    pub snapshot: String,
    /// The number of images that it knows.
    pub images: u64,
    /// Objects copied now.
    pub copied: u64,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Objects that were in the store.
    pub present: u64,
    /// Damaged originals of the store that were replaced by good ones.
    pub repaired: u64,
    /// Damaged blobs of the backup, which were not copied.
    pub damaged: Findings,
    /// Damaged originals of the store of which the backup has no good ones.
    pub damaged_in_store: Findings,
    /// Bytes that images need, and that the store lacks.
    pub missing: Findings,
    /// Images whose upload failed, and that have no good bytes: only another upload can help them.
    pub lost_uploads: Findings,
    /// Where the database is that was there before.
    pub replaced: Option<String>,
    /// How long it took.
    pub seconds: f64,
}

/// Restores a snapshot of the backup at `place` into the configured database and blob store.
pub async fn restore(
    config: &Config,
    place: &Location,
    options: &RestoreOptions,
    progress: &ProgressBar,
) -> Result<RestoreReport, CommandError> {
    let started = Instant::now();
    place.require_separate(config)?;
    let backup = place.open(config).await?;
    let snapshot = choose(&backup, options.at.as_deref()).await?;
    if snapshot.engine != database::engine(&config.database_url) {
        return Err(CommandError::usage(format!(
            "the snapshot {} is of another database system than {}",
            snapshot.name, config.database_url
        ))
        .hint("set database_url to a database of the kind that was backed up"));
    }
    checks::require_writable_folders(config)?;
    make_private_folder(&config.data_dir)?;
    let target = Target::claim(&config.database_url, options.force).await?;
    let blobs = services::open_blobs(config)?;
    let blobs = claim_store(config, blobs, snapshot.installation).await?;

    progress.set_message("database");
    // Before the bytes: if it is damaged, they need not be copied.
    let copy = target.temporary_file(&config.data_dir);
    database::fetch(&backup, &snapshot.dump, &copy).await?;
    if snapshot.engine == Engine::Sqlite {
        sqlite::complete(&copy, |_| Ok(())).await.map_err(CommandError::failed)?;
    }
    let mut report = RestoreReport {
        snapshot: snapshot.name.clone(),
        images: snapshot.images,
        ..RestoreReport::default()
    };
    progress.set_message("objects");
    copy_originals(&backup, &blobs, &snapshot, progress, &mut report).await?;
    copy_renditions(&backup, &blobs, &snapshot, progress, &mut report).await?;
    safelight_fail_points::hit("restore.copied").await;
    let replaced = target.install(&copy).await?;
    report.replaced = replaced.map(|path| path.display().to_string());

    progress.set_message("check");
    let contents = open_contents(&backup, &snapshot).await?;
    let mut missing = Missing::new(&blobs, contents);
    while let Some(needed) = missing.next().await? {
        match needed.state {
            BytesState::Failed => report.lost_uploads.add(needed.image.to_string()),
            _ => report.missing.add(format!("{} (image {})", needed.sha256, needed.image)),
        }
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

async fn choose(backup: &Blobs, at: Option<&str>) -> Result<Snapshot, CommandError> {
    let snapshots = snapshots::list(backup).await?;
    let names = || {
        let names: Vec<_> = snapshots.iter().take(20).map(|one| one.name.as_str()).collect();
        format!("snapshots: {}", names.join(", "))
    };
    if snapshots.is_empty() {
        return Err(CommandError::failed("there is no complete snapshot in this place")
            .hint("name the place that `safelight backup` wrote to"));
    }
    let found = match at {
        None => snapshots.first(),
        Some(at) => {
            if let Some(named) = snapshots.iter().find(|one| one.name == at) {
                Some(named)
            } else {
                let time = parse_time(at).ok_or_else(|| {
                    CommandError::usage(format!("--at {at} is neither a snapshot nor a time"))
                        .hint(format!("a time is 2026-11-30T12:00:00Z; {}", names()))
                })?;
                snapshots.iter().find(|one| one.taken_at <= time)
            }
        }
    };
    found
        .cloned()
        .ok_or_else(|| CommandError::failed("there is no snapshot that old").hint(names()))
}

/// A time, in UTC without an offset; a day is its end.
fn parse_time(text: &str) -> Option<DateTime<Utc>> {
    let full = if text.len() == 10 { format!("{text}T23:59:59.999Z") } else { text.to_owned() };
    let read = |text: &str| DateTime::parse_from_rfc3339(text);
    let time = read(&full).or_else(|_| read(&format!("{full}Z"))).ok()?;
    Some(time.to_utc())
}

/// The store as that of this installation, which an unmounted one is not. Rejects a store with the objects of another.
async fn claim_store(
    config: &Config,
    blobs: Blobs,
    id: InstallationId,
) -> Result<Blobs, CommandError> {
    let unusable = |error| installation::unusable(&config.blob_url, &error);
    let found = blobs.read_mark().await.map_err(unusable)?;
    if found == Some(id) {
        return Ok(blobs.of_installation(id));
    }
    if !blobs.is_empty().await.map_err(unusable)? {
        if let Some(other) = found {
            return Err(unusable(WrongStore::Foreign(other).into()));
        }
        return Err(CommandError::failed(format!(
            "the blob store {} is not empty",
            config.blob_url
        ))
        .hint(match config.blob_url {
            BlobUrl::File(_) => {
                "restore into a new directory: SAFELIGHT_BLOB_URL or SAFELIGHT_DATA_DIR"
            }
            BlobUrl::S3 { .. } => "restore into a new prefix or bucket: SAFELIGHT_BLOB_URL",
        }));
    }
    // At the beginning, so that a restore that was interrupted can be repeated. A new server may have marked the
    // store already; a store without a picture is nobody's loss.
    blobs.replace_mark(id).await.map_err(unusable)?;
    Ok(blobs.of_installation(id))
}

async fn open_contents(backup: &Blobs, snapshot: &Snapshot) -> Result<Contents, CommandError> {
    let contents = Contents::open(backup, &snapshot.contents.path).await;
    contents.map_err(|error| {
        CommandError::failed(format!("cannot read {}: {error}", snapshot.contents.path))
    })
}

/// Copies the bytes of the snapshot's images. Unfinished uploads need them staged, or as a blob.
async fn copy_originals(
    backup: &Blobs,
    blobs: &Blobs,
    snapshot: &Snapshot,
    progress: &ProgressBar,
    report: &mut RestoreReport,
) -> Result<(), CommandError> {
    let contents = open_contents(backup, snapshot).await?;
    let needed =
        stream::try_unfold((contents, None::<NeededBytes>), async |(mut contents, last)| {
            while let Some(needed) = contents.next().await.map_err(CommandError::failed)? {
                let is_known = last.is_some_and(|last| last.sha256 == needed.sha256);
                if !is_known || needed.state != BytesState::Stored {
                    return Ok(Some((needed, (contents, Some(needed)))));
                }
            }
            Ok(None)
        });
    let copies = needed.map_ok(|needed| copy_original(backup, blobs, needed));
    count(copies, progress, report).await
}

/// Runs copies, [`AT_ONCE`] at a time, and counts what became of each object.
async fn count<C>(
    copies: impl Stream<Item = Result<C, CommandError>>,
    progress: &ProgressBar,
    report: &mut RestoreReport,
) -> Result<(), CommandError>
where
    C: Future<Output = Result<Outcome, CommandError>>,
{
    let mut outcomes = std::pin::pin!(copies.try_buffer_unordered(AT_ONCE));
    while let Some((done, path)) = outcomes.try_next().await? {
        progress.inc(1);
        report.add(done, path);
    }
    Ok(())
}

/// What became of an object, and its path.
type Outcome = (Done, String);

/// What became of an object.
#[derive(Clone, Copy)]
enum Done {
    /// The store has it.
    Present,
    /// It was copied.
    Copied(u64),
    /// It was damaged in the store, and replaced.
    Repaired(u64),
    /// It is damaged in the store, and the backup has no good one.
    DamagedInStore,
    /// It is damaged in the backup. Nothing was written.
    Damaged,
    /// The backup does not have it. If it is needed, the check names its image.
    Gone,
}

async fn copy_original(
    backup: &Blobs,
    blobs: &Blobs,
    needed: NeededBytes,
) -> Result<Outcome, CommandError> {
    let is_stored = needed.state == BytesState::Stored;
    let staged = (!is_stored).then_some(BlobKey::Incoming(needed.image));
    let mut outcome = (Done::Gone, String::new());
    for key in staged.into_iter().chain([BlobKey::Blob(needed.sha256)]) {
        let path = key.path().to_string();
        let found = hash_of(blobs, &key, needed.bytes).await?;
        if found == Some(needed.sha256) {
            return Ok((Done::Present, path));
        }
        let expected = Some(needed.sha256);
        let copied = copying::copy((backup, &path), (blobs, &path), expected).await;
        match (copied.map_err(CommandError::failed)?, found) {
            (Copied::Whole(bytes), None) => return Ok((Done::Copied(bytes), path)),
            (Copied::Whole(bytes), Some(_)) => return Ok((Done::Repaired(bytes), path)),
            (_, Some(_)) => outcome = (Done::DamagedInStore, path),
            (Copied::Damaged, None) => outcome = (Done::Damaged, path),
            (Copied::Gone, None) => {}
        }
    }
    Ok(outcome)
}

/// The hash of an object; `None` if the store does not have it, or has it in another size.
async fn hash_of(
    blobs: &Blobs,
    key: &BlobKey,
    bytes: u64,
) -> Result<Option<ContentHash>, CommandError> {
    if blobs.size(key).await.map_err(CommandError::failed)? != Some(bytes) {
        return Ok(None);
    }
    match blobs.hash(key).await {
        Ok((found, _)) => Ok(Some(found)),
        Err(BlobError::NotFound) => Ok(None),
        Err(error) => Err(CommandError::failed(format!("cannot read {}: {error}", key.path()))),
    }
}

/// Copies the renditions of the snapshot's images, as far as the backup has them.
async fn copy_renditions(
    backup: &Blobs,
    blobs: &Blobs,
    snapshot: &Snapshot,
    progress: &ProgressBar,
    report: &mut RestoreReport,
) -> Result<(), CommandError> {
    let contents = open_contents(backup, snapshot).await?;
    let walk = Walk::renditions(backup);
    let wanted = stream::try_unfold((walk, contents), async |(mut walk, mut contents)| {
        while let Some(object) = walk.next().await.map_err(CommandError::failed)? {
            let of: Option<ContentHash> = object.key.as_ref().and_then(BlobKey::blob);
            let Some(of) = of else { continue };
            if contents.needs(&of).await.map_err(CommandError::failed)? {
                return Ok(Some((object, (walk, contents))));
            }
        }
        Ok(None)
    });
    let copies = wanted.map_ok(async |object| {
        let path = object.path;
        let size = match &object.key {
            Some(key) => blobs.size(key).await.map_err(CommandError::failed)?,
            None => None,
        };
        if size == Some(object.bytes) {
            return Ok((Done::Present, path));
        }
        let copied = copying::copy((backup, &path), (blobs, &path), None).await;
        let done = match copied.map_err(CommandError::failed)? {
            Copied::Whole(bytes) => Done::Copied(bytes),
            Copied::Damaged => Done::Damaged,
            Copied::Gone => Done::Gone,
        };
        Ok::<Outcome, CommandError>((done, path))
    });
    count(copies, progress, report).await
}

impl RestoreReport {
    /// Whether every image has its bytes.
    pub fn is_complete(&self) -> bool {
        self.missing.count == 0 && self.damaged_in_store.count == 0
    }

    fn add(&mut self, done: Done, path: String) {
        match done {
            Done::Present => self.present += 1,
            Done::Copied(bytes) => {
                self.copied += 1;
                self.copied_bytes += bytes;
            }
            Done::Repaired(bytes) => {
                self.copied += 1;
                self.copied_bytes += bytes;
                self.repaired += 1;
            }
            Done::DamagedInStore => self.damaged_in_store.add(path),
            Done::Damaged => self.damaged.add(path),
            Done::Gone => {}
        }
    }
}
