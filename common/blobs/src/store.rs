//! The blob store itself.

use std::{ffi::OsString, ops::Range, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{Stream, TryStreamExt};
use object_store::{
    ClientOptions, GetOptions, GetRange, GetResult, GetResultPayload, ObjectStore, ObjectStoreExt,
    PutPayload, RetryConfig, aws::AmazonS3Builder, local::LocalFileSystem, path::Path,
    prefix::PrefixStore,
};
use safelight_domain::{ContentHash, ImageId};
use tokio::{sync::Semaphore, time::timeout};
use uuid::Uuid;

use super::{
    BlobError, BlobKey, BlobStream, WrongStore,
    free_space::FreeSpace,
    move_limits::MoveLimits,
    owner::Owner,
    proven_files::ProvenFiles,
    shared_look::SharedLook,
    spool::Spool,
    time_limits::{FIRST_BYTE, in_time, whole, with_stall_timeout},
    upload_file::SyncedShards,
};

/// Maximum number of parts in memory that the process sends to an object store at once. Limits memory for any
/// number of uploads.
const PARTS_IN_MEMORY: usize = 4;

/// How long a write may take, or one part of a large write.
const WRITE: Duration = Duration::from_mins(1);

/// Large enough to detect a full disk, and small enough to be sent regularly.
const PROBE_BYTES: usize = 1 << 20;

/// The folder of objects that show whether the store can be written.
pub(super) const PROBES: &str = "probe";

/// The object whose modification time is the store's clock.
pub(super) const CLOCK: &str = "clock";

/// A local directory or an S3-compatible store. Every successful write is durable: files and their folders are
/// synced, or the object store has acknowledged the write.
#[derive(Clone)]
pub struct Blobs {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The same store for reads, without a limit on the total time.
    pub(super) reads: Arc<dyn ObjectStore>,
    /// Holds bodies on their way to a remote store; `None` for a local directory.
    pub(super) spool: Option<Spool>,
    /// The folder of unfinished uploads, for a local directory.
    pub(super) incoming: Option<PathBuf>,
    /// Shard folders of a local directory whose names are durable.
    pub(super) shards: Arc<SyncedShards>,
    /// The installation whose mark the store must have.
    pub(super) owner: Option<Owner>,
    /// The object that this process writes to see whether it can; each process has one, so that failed deletions
    /// leave no more.
    probe: Path,
    /// Looks at whether the store can be written.
    writable: SharedLook,
    /// The reserve that uploads and renditions leave.
    pub(super) space: FreeSpace,
    pub(super) moves: MoveLimits,
    pub(super) proven: ProvenFiles,
}

/// An opened object.
pub struct OpenBlob {
    /// Its size.
    pub bytes: u64,
    /// Its content.
    pub content: BlobContent,
}

/// An opened object's content.
pub enum BlobContent {
    /// A file of the local directory.
    File(std::fs::File),
    /// A stream from a remote store, which can be read once.
    Stream(BlobStream),
}

/// Bytes that a node of the version before staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incoming {
    /// The image whose bytes they are.
    pub image: ImageId,
    /// When they were last written.
    pub modified: DateTime<Utc>,
}

/// The location of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlobLocation {
    /// A local or mounted folder.
    Folder(PathBuf),
    /// A bucket, with access configured by the `AWS_*` variables.
    Bucket {
        /// The bucket.
        bucket: String,
        /// The prefix of all keys; may be empty.
        prefix: String,
    },
}

impl Blobs {
    /// Opens the store at `location`. Uses the folder `spool` only for remote stores. Creates local folders, and
    /// does not contact a remote store (see [`Blobs::check`]).
    pub fn open(location: &BlobLocation, spool: &std::path::Path) -> Result<Self, BlobError> {
        Self::open_from(location, spool, environment())
    }

    /// [`Blobs::open`] with the `AWS_*` variables taken from `env`.
    pub fn open_from(
        location: &BlobLocation,
        spool: &std::path::Path,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, BlobError> {
        match location {
            BlobLocation::Folder(folder) => {
                let incoming = folder.join(BlobKey::INCOMING);
                std::fs::create_dir_all(&incoming)?;
                let store = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
                let store: Arc<dyn ObjectStore> = Arc::new(store);
                Ok(Self {
                    reads: store.clone(),
                    store,
                    spool: None,
                    incoming: Some(incoming),
                    shards: Arc::default(),
                    owner: None,
                    probe: probe(),
                    writable: SharedLook::default(),
                    space: FreeSpace::default(),
                    moves: MoveLimits::default(),
                    proven: ProvenFiles::default(),
                })
            }
            BlobLocation::Bucket { bucket, prefix } => {
                std::fs::create_dir_all(spool)?;
                // Jobs are retried anyway, and requests should fail fast in an outage.
                let retry = RetryConfig {
                    max_retries: 2,
                    retry_timeout: Duration::from_secs(10),
                    ..RetryConfig::default()
                };
                let client = ClientOptions::new()
                    .with_allow_http(true)
                    .with_connect_timeout(Duration::from_secs(3));
                let s3 = s3_from(env).with_bucket_name(bucket).with_retry(retry);
                let reached = |client: ClientOptions| -> Result<Arc<dyn ObjectStore>, BlobError> {
                    let s3 = s3.clone().with_client_options(client).build()?;
                    Ok(Arc::new(PrefixStore::new(s3, prefix.as_str())))
                };
                Ok(Self {
                    store: reached(client.clone().with_timeout(WRITE))?,
                    reads: reached(client.with_timeout_disabled())?,
                    spool: Some(Spool {
                        folder: spool.to_owned(),
                        parts: Arc::new(Semaphore::new(PARTS_IN_MEMORY)),
                    }),
                    incoming: None,
                    shards: Arc::default(),
                    owner: None,
                    probe: probe(),
                    writable: SharedLook::default(),
                    space: FreeSpace::default(),
                    moves: MoveLimits::default(),
                    proven: ProvenFiles::default(),
                })
            }
        }
    }

    /// Checks that the store answers, allows access, and is this installation's.
    pub async fn check(&self) -> Result<(), BlobError> {
        self.confirm().await?;
        if self.owner.is_some() {
            return Ok(());
        }
        // The lookup of an object that cannot exist must report that.
        match in_time(FIRST_BYTE, self.store.head(&Path::from("incoming/check"))).await {
            Ok(_) | Err(BlobError::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Checks that the store is this installation's, and that an object of an average picture's size can be written
    /// and read back, and leaves the reserve. Concurrent callers share checks.
    pub async fn check_writable(&self) -> Result<(), BlobError> {
        self.writable.after_now(self.write_probe()).await
    }

    async fn write_probe(&self) -> Result<(), BlobError> {
        self.confirm().await?;
        self.leave_reserve(PROBE_BYTES as u64).await?;
        let bytes = vec![0; PROBE_BYTES];
        let written = self.store.put(&self.probe, PutPayload::from(bytes.clone())).await;
        let read = match written {
            Ok(_) => self.read_path(&self.probe).await,
            Err(error) => Err(error.into()),
        };
        // A failed write may have left something. A store that does not allow to delete can be used all the same.
        if let Err(error) = self.delete_path(&self.probe).await {
            tracing::debug!(%error, "the probe object stays");
        }
        if read? == bytes { Ok(()) } else { Err(BlobError::Damaged) }
    }

    /// The time by the store's own clock, which also sets [`Incoming::modified`]. Ages are computed with it, since
    /// this machine's clock may be an hour off. Some stores round down to seconds. Writes an empty object, which
    /// remains.
    pub async fn clock(&self) -> Result<DateTime<Utc>, BlobError> {
        let probe = Path::from(CLOCK);
        self.store.put(&probe, PutPayload::new()).await?;
        Ok(self.store.head(&probe).await?.last_modified)
    }

    /// Whether an object exists.
    pub async fn exists(&self, key: &BlobKey) -> Result<bool, BlobError> {
        Ok(self.size(key).await?.is_some())
    }

    /// Whether the bytes of an upload are there.
    pub async fn has_upload(&self, image: ImageId, sha256: ContentHash) -> Result<bool, BlobError> {
        for key in BlobKey::of_upload(image, sha256) {
            if self.exists(&key).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The size of an object; `None` if it does not exist.
    pub async fn size(&self, key: &BlobKey) -> Result<Option<u64>, BlobError> {
        match self.believe(self.store.head(&key.path()).await).await {
            Ok(found) => Ok(Some(found.size)),
            Err(BlobError::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the store is a local directory.
    pub fn is_local(&self) -> bool {
        self.incoming.is_some()
    }

    /// The folder of the store, for a local directory.
    pub(super) fn folder(&self) -> Option<PathBuf> {
        Some(self.incoming.as_deref()?.parent()?.to_owned())
    }

    /// Opens an object.
    pub async fn open_blob(&self, key: &BlobKey) -> Result<OpenBlob, BlobError> {
        let result = self.get(key, None).await?;
        let bytes = result.meta.size;
        let content = match result.payload {
            GetResultPayload::File(file, _) => BlobContent::File(file),
            GetResultPayload::Stream(stream) => BlobContent::Stream(with_stall_timeout(stream)),
        };
        Ok(OpenBlob { bytes, content })
    }

    /// Streams a part of an object.
    pub async fn stream_range(
        &self,
        key: &BlobKey,
        range: Range<u64>,
    ) -> Result<BlobStream, BlobError> {
        Ok(with_stall_timeout(self.get(key, Some(range.into())).await?.into_stream()))
    }

    /// Reads a whole object of at most `limit` bytes.
    pub async fn read(&self, key: &BlobKey, limit: u64) -> Result<Bytes, BlobError> {
        let result = self.get(key, None).await?;
        let bytes = result.meta.size;
        if bytes > limit {
            return Err(BlobError::TooLarge { bytes, limit });
        }
        whole(result).await
    }

    /// Reads the first `count` bytes of an object, or all if it has fewer.
    pub async fn read_head(&self, key: &BlobKey, count: u64) -> Result<Bytes, BlobError> {
        whole(self.get(key, Some(GetRange::Bounded(0..count))).await?).await
    }

    /// Reads a whole object, and returns its hash and its size.
    pub async fn hash(&self, key: &BlobKey) -> Result<(ContentHash, u64), BlobError> {
        let found = self.digest(key, 0).await?;
        Ok((found.sha256, found.bytes))
    }

    /// Starts to read an object.
    pub(super) async fn get(
        &self,
        key: &BlobKey,
        range: Option<GetRange>,
    ) -> Result<GetResult, BlobError> {
        let options = GetOptions { range, ..GetOptions::default() };
        let answer = timeout(FIRST_BYTE, self.reads.get_opts(&key.path(), options)).await;
        self.believe(answer.map_err(|_| BlobError::Late)?).await
    }

    /// Reads a whole small object, also of a store with another mark.
    pub(super) async fn read_path(&self, path: &Path) -> Result<Bytes, BlobError> {
        whole(in_time(FIRST_BYTE, self.reads.get_opts(path, GetOptions::default())).await?).await
    }

    /// Writes an object, and replaces an existing one.
    pub async fn put(&self, key: &BlobKey, bytes: Bytes) -> Result<(), BlobError> {
        self.leave_reserve(bytes.len() as u64).await?;
        let path = key.path();
        if self.is_local() {
            self.confirm().await?;
        }
        self.store.put(&path, PutPayload::from(bytes)).await?;
        let confirmed = self.confirm().await;
        if matches!(confirmed, Err(BlobError::WrongStore(WrongStore::Unmarked))) {
            // It was written somewhere else, for example below the mount point of a volume that was unmounted.
            let _ = self.store.delete(&path).await;
        }
        confirmed
    }

    /// Fails unless an object exists and has this size.
    pub(super) async fn require_size(&self, path: &Path, bytes: u64) -> Result<(), BlobError> {
        let found = self.believe(self.store.head(path).await).await?.size;
        if found == bytes { Ok(()) } else { Err(BlobError::Damaged) }
    }

    /// Before `bytes` are written to a local directory. A remote store has its own limits.
    async fn leave_reserve(&self, bytes: u64) -> Result<(), BlobError> {
        if self.is_local() { self.space.take(bytes).await } else { Ok(()) }
    }

    /// Deletes an object. Succeeds if it does not exist.
    pub async fn delete(&self, key: &BlobKey) -> Result<(), BlobError> {
        self.delete_path(&key.path()).await
    }

    /// [`Blobs::delete`] for a path without a key.
    pub(super) async fn delete_path(&self, path: &Path) -> Result<(), BlobError> {
        match self.believe(self.store.delete(path).await).await {
            Err(BlobError::NotFound) => Ok(()),
            other => other,
        }
    }

    /// All bytes that nodes of the version before staged, in no order.
    pub fn incoming(&self) -> impl Stream<Item = Result<Incoming, BlobError>> + '_ {
        self.store
            .list(Some(&Path::from(BlobKey::INCOMING)))
            .map_err(BlobError::from)
            .try_filter_map(async |object| {
                let image = object.location.filename().and_then(|name| name.parse().ok());
                Ok(image.map(|image| Incoming { image, modified: object.last_modified }))
            })
    }
}

/// A name for the probe object of a process.
fn probe() -> Path {
    Path::from_iter([PROBES, &Uuid::new_v4().to_string()])
}

/// The environment of this process. Variables that are not UTF-8 are ignored.
pub(super) fn environment() -> impl Iterator<Item = (String, String)> {
    let utf8 = |(key, value): (OsString, OsString)| {
        Some((key.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(utf8)
}

/// An S3 client configured by the `AWS_*` variables in `env`, like `object_store` does it.
pub(super) fn s3_from(env: impl IntoIterator<Item = (String, String)>) -> AmazonS3Builder {
    let known = env.into_iter().filter_map(|(key, value)| {
        let key = key.starts_with("AWS_").then(|| key.to_ascii_lowercase().parse().ok())?;
        Some((key?, value))
    });
    known.fold(AmazonS3Builder::new(), |s3, (key, value)| s3.with_config(key, value))
}
