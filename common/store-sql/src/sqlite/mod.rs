//! The store in one SQLite file, for one process: one writer with group commit, and readers beside
//! it (WAL).

mod accept;
mod access;
mod backfill;
mod clock;
mod control;
mod deletion;
mod filter;
mod jobs;
mod outbox;
mod prune;
mod read;
mod request;
mod rows;
mod workers;
mod writer;

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use safelight_domain::{
    ApiKey, Backfill, ContentHash, Image, ImageId, JobId, JobKind, JobNotice, Lane, Owner, Removal,
    SigningKey, Task, TaskId, Usage, WorkerId,
};
use safelight_store::{
    Accepted, Advance, AuditEntry, Claim, ClaimedJob, Deletion, DeletionRequest, Heartbeat,
    IdempotencyKey, ImageFilter, ImagePage, Item, JobCount, KeyState, KeyTicket, KnownApiKey,
    Lease, LiveSigningKey, NewApiKey, NewBackfill, NewSigningKey, NewUpload, Obstacle, OutboxBatch,
    Outcome, PageRequest, QueueCapacity, Reference, RegisteredWorker, RenditionRequest, Renewed,
    Requested, Settled, Store, StoreError, TaskFilter, TaskPage, TaskVersion,
};
use sqlx::{
    ConnectOptions, SqliteConnection, SqlitePool,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use uuid::Uuid;

#[cfg(feature = "testing")]
pub use self::clock::Clock;

#[cfg(not(feature = "testing"))]
use self::clock::Clock;
use self::writer::Writer;
use crate::{convert, fs_permissions, schema};

static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations/sqlite");

/// How long a statement waits for another process's lock, and a read for a free connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections that read side by side.
const READERS: u32 = 4;

/// The SQLite backend.
pub struct SqliteStore {
    reads: SqlitePool,
    writer: Writer,
    clock: Clock,
    lock_path: PathBuf,
    /// Held while this process works on an in-process queue.
    lock: Mutex<Option<File>>,
}

impl SqliteStore {
    /// Opens the database in the file `path`; makes the file, and the folder that it is in, if they
    /// are not there, for nobody else to read.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        // NORMAL would lose the last commits when the power fails: uploads that had their 202.
        Self::open_with(path, SqliteSynchronous::Full, Clock::default()).await
    }

    /// Opens it for a simulation: on `clock`, and as nothing survives a simulation, syncing
    /// nothing.
    #[cfg(feature = "testing")]
    pub async fn open_simulated(path: &Path, clock: Clock) -> Result<Self, StoreError> {
        Self::open_with(path, SqliteSynchronous::Off, clock).await
    }

    async fn open_with(
        path: &Path,
        synchronous: SqliteSynchronous,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs_permissions::make_folder(folder).map_err(|error| {
                let text = format!("cannot make the folder {}: {error}", folder.display());
                StoreError::Unavailable(Arc::new(io::Error::new(error.kind(), text)))
            })?;
        }
        // SQLite makes its log and shared memory with the permissions of the file. If that cannot be made,
        // SQLite says why.
        drop(fs_permissions::make_file(path));
        let options = SqliteConnectOptions::new().filename(path).foreign_keys(true);
        let options = options.busy_timeout(PATIENCE);
        let writing = options
            .clone()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            // Gives the log's space back after a burst.
            .pragma("journal_size_limit", "67108864");
        let conn = connect(&writing).await.map_err(|error| cannot_open(path, error))?;
        let reads = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(PATIENCE)
            // They are local and never break; a test would double every read.
            .test_before_acquire(false)
            .connect_lazy_with(options.read_only(true));
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        Ok(Self {
            reads,
            writer: Writer::start(writing, conn, clock.clone()),
            clock,
            lock_path: lock_path.into(),
            lock: Mutex::new(None),
        })
    }
}

/// Opens the file. Where several open a new one at the same time, the change to WAL can fail with
/// `SQLITE_BUSY` at once, whatever the busy timeout (<https://www.sqlite.org/wal.html>, section 9).
async fn connect(options: &SqliteConnectOptions) -> Result<SqliteConnection, sqlx::Error> {
    let begun = Instant::now();
    loop {
        match options.connect().await {
            Err(error) if is_busy(&error) && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => return opened,
        }
    }
}

fn is_busy(error: &sqlx::Error) -> bool {
    const SQLITE_BUSY: &str = "5";
    error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code)
        .is_some_and(|code| code == SQLITE_BUSY)
}

/// SQLite's own words for this name no file.
fn cannot_open(path: &Path, error: sqlx::Error) -> StoreError {
    let text = format!("cannot open {}: {error}", path.display());
    let unavailable = StoreError::from(error).is_unavailable();
    let cause = Arc::new(io::Error::other(text));
    if unavailable { StoreError::Unavailable(cause) } else { StoreError::Database(cause) }
}

/// The newest migration in the database; 0 for none.
async fn schema_version(conn: &mut SqliteConnection) -> Result<i64, StoreError> {
    let table: i64 =
        sqlx::query_scalar("select count(*) from sqlite_schema where name = '_sqlx_migrations'")
            .fetch_one(&mut *conn)
            .await?;
    if table == 0 {
        return Ok(0);
    }
    Ok(sqlx::query_scalar("select coalesce(max(version), 0) from _sqlx_migrations where success")
        .fetch_one(conn)
        .await?)
}

#[async_trait]
impl Store for SqliteStore {
    async fn migrate(&self) -> Result<(), StoreError> {
        // Within the writer's transaction, which keeps other processes out: sqlx has no lock of its
        // own for SQLite.
        self.writer
            .run(|conn, _| {
                Box::pin(async move {
                    schema::refuse_newer(schema_version(conn).await?, &MIGRATIONS)?;
                    // What `run` does, without its bounds that no borrowed connection meets.
                    MIGRATIONS.run_direct(None, conn, false).await.map_err(schema::failed)
                })
            })
            .await
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        let mut conn = self.reads.acquire().await?;
        schema::check(schema_version(&mut conn).await?, &MIGRATIONS)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        // A write, in the queue with all others: reading works on a full disk, and beside a process
        // that holds the lock. Nobody uses this number.
        self.writer
            .run(|conn, _| {
                Box::pin(async move {
                    sqlx::query("pragma user_version = 0").execute(conn).await?;
                    Ok(())
                })
            })
            .await
    }

    async fn lock_for_embedded_queue(&self) -> Result<bool, StoreError> {
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if lock.is_some() {
            return Ok(true);
        }
        let unavailable = |error: io::Error| {
            let text = format!("cannot lock {}: {error}", self.lock_path.display());
            StoreError::Unavailable(Arc::new(io::Error::new(error.kind(), text)))
        };
        // The lock goes with the open file, so it ends with this store or this process.
        let file = File::create(&self.lock_path).map_err(unavailable)?;
        match file.try_lock() {
            Ok(()) => {
                *lock = Some(file);
                Ok(true)
            }
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(unavailable(error)),
        }
    }

    async fn reserve_key(
        &self,
        key: &IdempotencyKey,
        hold: Duration,
    ) -> Result<KeyState, StoreError> {
        let key = key.clone();
        self.writer.run(move |conn, now| Box::pin(accept::reserve_key(conn, now, key, hold))).await
    }

    async fn release_key(&self, ticket: &KeyTicket) -> Result<(), StoreError> {
        let ticket = ticket.clone();
        self.writer.run(move |conn, _| Box::pin(accept::release_key(conn, ticket))).await
    }

    async fn extend_key(&self, ticket: &KeyTicket, hold: Duration) -> Result<(), StoreError> {
        let ticket = ticket.clone();
        self.writer
            .run(move |conn, now| Box::pin(accept::extend_key(conn, now, ticket, hold)))
            .await
    }

    async fn accept(&self, upload: &NewUpload) -> Result<Accepted, StoreError> {
        let upload = upload.clone();
        self.writer.run(move |conn, now| Box::pin(accept::accept(conn, now, upload))).await
    }

    async fn expire_keys(&self, age: Duration, limit: u32) -> Result<u64, StoreError> {
        accept::expire_keys(&self.reads, &self.writer, self.clock.now(), age, limit).await
    }

    async fn request_rendition(&self, request: &RenditionRequest) -> Result<Requested, StoreError> {
        let request = request.clone();
        self.writer
            .run(move |conn, now| Box::pin(request::request_rendition(conn, now, request)))
            .await
    }

    async fn task(&self, id: TaskId) -> Result<Option<Task>, StoreError> {
        read::task(&self.reads, self.clock.now(), id).await
    }

    async fn task_versions(&self, ids: &[TaskId]) -> Result<Vec<TaskVersion>, StoreError> {
        read::task_versions(&self.reads, ids).await
    }

    async fn list_tasks(
        &self,
        filter: &TaskFilter,
        page: &PageRequest<TaskId>,
    ) -> Result<TaskPage, StoreError> {
        read::list_tasks(&self.reads, self.clock.now(), filter, page).await
    }

    async fn image(&self, id: ImageId) -> Result<Option<Image>, StoreError> {
        read::image(&self.reads, id).await
    }

    async fn list_images(
        &self,
        owner: Option<&Owner>,
        page: &PageRequest<ImageId>,
    ) -> Result<ImagePage, StoreError> {
        read::list_images(&self.reads, owner, page).await
    }

    async fn last_task_of_image(
        &self,
        id: ImageId,
        kind: JobKind,
    ) -> Result<Option<Task>, StoreError> {
        read::last_task_of_image(&self.reads, self.clock.now(), id, kind).await
    }

    async fn existing_images(&self, ids: &[ImageId]) -> Result<Vec<ImageId>, StoreError> {
        read::existing_images(&self.reads, ids).await
    }

    async fn take_unpublished(
        &self,
        room: &QueueCapacity,
        hold: Duration,
    ) -> Result<OutboxBatch, StoreError> {
        outbox::take(&self.reads, &self.writer, self.clock.now(), room, hold).await
    }

    async fn mark_published(&self, published: &[JobNotice]) -> Result<(), StoreError> {
        let published = published.to_vec();
        self.writer.run(move |conn, _| Box::pin(outbox::mark_published(conn, published))).await
    }

    async fn return_unpublished(&self, unpublished: &[JobNotice]) -> Result<(), StoreError> {
        let unpublished = unpublished.to_vec();
        self.writer
            .run(move |conn, now| Box::pin(outbox::return_unpublished(conn, now, unpublished)))
            .await
    }

    async fn unpublish(
        &self,
        kind: JobKind,
        lane: Lane,
        waited: Duration,
        limit: u32,
    ) -> Result<u64, StoreError> {
        outbox::unpublish(&self.reads, &self.writer, self.clock.now(), (kind, lane), waited, limit)
            .await
    }

    async fn republish(&self, job: JobId, delay: Duration) -> Result<bool, StoreError> {
        self.writer.run(move |conn, now| Box::pin(outbox::republish(conn, now, job, delay))).await
    }

    async fn count_published(&self, kind: JobKind, lane: Lane) -> Result<u64, StoreError> {
        outbox::count_published(&self.reads, self.clock.now(), kind, lane).await
    }

    async fn claim(
        &self,
        notice: &JobNotice,
        redelivered: bool,
        worker: WorkerId,
        lease: Duration,
        understood: u32,
    ) -> Result<Claim, StoreError> {
        let notice = *notice;
        self.writer
            .run(move |conn, now| {
                Box::pin(jobs::claim(conn, now, notice, redelivered, worker, lease, understood))
            })
            .await
    }

    async fn renew(&self, leases: &[Lease], lease: Duration) -> Result<Renewed, StoreError> {
        let leases = leases.to_vec();
        self.writer.run(move |conn, now| Box::pin(jobs::renew(conn, now, leases, lease))).await
    }

    async fn settle(&self, lease: &Lease, outcome: &Outcome) -> Result<Settled, StoreError> {
        let (lease, outcome) = (*lease, outcome.clone());
        self.writer.run(move |conn, now| Box::pin(jobs::settle(conn, now, lease, outcome))).await
    }

    async fn expired_leases(&self, limit: u32) -> Result<Vec<ClaimedJob>, StoreError> {
        jobs::expired_leases(&self.reads, self.clock.now(), limit).await
    }

    async fn take_over(&self) -> Result<u64, StoreError> {
        self.writer.run(|conn, now| Box::pin(jobs::take_over(conn, now))).await
    }

    async fn cancel(&self, id: TaskId) -> Result<bool, StoreError> {
        self.writer.run(move |conn, now| Box::pin(control::cancel(conn, now, id))).await
    }

    async fn retry(&self, ids: &[TaskId]) -> Result<Vec<TaskId>, StoreError> {
        let ids = ids.to_vec();
        self.writer.run(move |conn, now| Box::pin(control::retry(conn, now, ids))).await
    }

    async fn discarded(&self, limit: u32, age: Duration) -> Result<Vec<Image>, StoreError> {
        control::discarded(&self.reads, self.clock.now(), limit, age).await
    }

    async fn is_blob_wanted(&self, sha256: &ContentHash) -> Result<bool, StoreError> {
        control::is_blob_wanted(&self.reads, sha256).await
    }

    async fn forget_blob(&self, sha256: &ContentHash) -> Result<bool, StoreError> {
        let sha256 = *sha256;
        self.writer.run(move |conn, _| Box::pin(control::forget_blob(conn, sha256))).await
    }

    async fn mark_removed(&self, id: ImageId) -> Result<(), StoreError> {
        self.writer.run(move |conn, now| Box::pin(control::mark_removed(conn, now, id))).await
    }

    async fn delete_image(&self, request: &DeletionRequest) -> Result<Deletion, StoreError> {
        let request = request.clone();
        self.writer.run(move |conn, now| Box::pin(deletion::delete_image(conn, now, request))).await
    }

    async fn removal(&self, task: TaskId) -> Result<Option<Removal>, StoreError> {
        deletion::removal(&self.reads, task).await
    }

    async fn references(&self, hashes: &[ContentHash]) -> Result<Vec<Reference>, StoreError> {
        deletion::references(&self.reads, hashes).await
    }

    async fn create_backfill(&self, new: &NewBackfill) -> Result<bool, StoreError> {
        let new = new.clone();
        self.writer.run(move |conn, now| Box::pin(backfill::create(conn, now, new))).await
    }

    async fn lead_backfills(
        &self,
        foreman: WorkerId,
        hold: Duration,
        limit: u32,
    ) -> Result<Vec<Backfill>, StoreError> {
        let now = self.clock.now();
        backfill::lead(&self.reads, &self.writer, now, foreman, hold, limit).await
    }

    async fn count_images(&self, filter: &ImageFilter) -> Result<u64, StoreError> {
        backfill::count_images(&self.reads, filter).await
    }

    async fn walk_images(
        &self,
        filter: &ImageFilter,
        after: Option<ImageId>,
        limit: u32,
    ) -> Result<Vec<Image>, StoreError> {
        backfill::walk_images(&self.reads, filter, after, limit).await
    }

    async fn images_with_blobs(
        &self,
        owner: &Owner,
        hashes: &[ContentHash],
    ) -> Result<Vec<(ContentHash, ImageId)>, StoreError> {
        backfill::images_with_blobs(&self.reads, owner, hashes).await
    }

    async fn obstacles(&self, images: &[ImageId]) -> Result<Vec<Obstacle>, StoreError> {
        backfill::obstacles(&self.reads, images).await
    }

    async fn advance_backfill(&self, step: &Advance) -> Result<bool, StoreError> {
        let step = step.clone();
        self.writer.run(move |conn, now| Box::pin(backfill::advance(conn, now, step))).await
    }

    async fn tally_backfill(&self, id: TaskId, limit: u32) -> Result<u64, StoreError> {
        backfill::tally(&self.reads, &self.writer, id, limit).await
    }

    async fn retry_backfill(&self, id: TaskId, limit: u32) -> Result<u64, StoreError> {
        control::retry_children(&self.reads, &self.writer, id, limit).await
    }

    async fn pause_backfill(&self, id: TaskId, paused: bool) -> Result<bool, StoreError> {
        self.writer.run(move |conn, now| Box::pin(backfill::pause(conn, now, id, paused))).await
    }

    async fn backfill_report(
        &self,
        id: TaskId,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<Item>, StoreError> {
        backfill::report(&self.reads, id, after, limit).await
    }

    async fn prune_tasks(&self, age: Duration, limit: u32) -> Result<u64, StoreError> {
        let before = self.clock.now().saturating_sub(convert::micros(age));
        prune::prune(&self.reads, &self.writer, before, convert::id_of_age(age), limit).await
    }

    async fn heartbeat(&self, beat: &Heartbeat) -> Result<(), StoreError> {
        let beat = beat.clone();
        self.writer.run(move |conn, now| Box::pin(workers::heartbeat(conn, now, beat))).await
    }

    async fn list_workers(&self, limit: u32) -> Result<Vec<RegisteredWorker>, StoreError> {
        workers::list(&self.reads, self.clock.now(), limit).await
    }

    async fn forget_workers(&self, silent: Duration) -> Result<u64, StoreError> {
        self.writer.run(move |conn, now| Box::pin(workers::forget(conn, now, silent))).await
    }

    async fn leave(&self, worker: WorkerId) -> Result<(), StoreError> {
        self.writer.run(move |conn, _| Box::pin(workers::leave(conn, worker))).await
    }

    async fn create_api_key(&self, new: &NewApiKey) -> Result<(), StoreError> {
        let new = new.clone();
        self.writer.run(move |conn, now| Box::pin(access::create_key(conn, now, new))).await
    }

    async fn api_key(&self, prefix: &str) -> Result<Option<KnownApiKey>, StoreError> {
        access::key(&self.reads, self.clock.now(), prefix).await
    }

    async fn has_api_keys(&self) -> Result<bool, StoreError> {
        access::has_keys(&self.reads).await
    }

    async fn list_api_keys(
        &self,
        owner: Option<&Owner>,
        page: &PageRequest<Uuid>,
    ) -> Result<Vec<ApiKey>, StoreError> {
        access::list_keys(&self.reads, owner, page).await
    }

    async fn revoke_api_key(&self, id: Uuid) -> Result<Option<ApiKey>, StoreError> {
        self.writer.run(move |conn, now| Box::pin(access::revoke_key(conn, now, id))).await
    }

    async fn note_key_use(&self, id: Uuid) -> Result<(), StoreError> {
        self.writer.run(move |conn, now| Box::pin(access::note_key_use(conn, now, id))).await
    }

    async fn create_signing_key(
        &self,
        new: &NewSigningKey,
        at_most: u32,
    ) -> Result<bool, StoreError> {
        let new = new.clone();
        self.writer
            .run(move |conn, now| Box::pin(access::create_signing_key(conn, now, new, at_most)))
            .await
    }

    async fn signing_key(&self, id: &str) -> Result<Option<LiveSigningKey>, StoreError> {
        access::signing_key(&self.reads, id).await
    }

    async fn newest_signing_key(
        &self,
        owner: &Owner,
    ) -> Result<Option<LiveSigningKey>, StoreError> {
        access::newest_signing_key(&self.reads, owner).await
    }

    async fn list_signing_keys(
        &self,
        owner: Option<&Owner>,
    ) -> Result<Vec<SigningKey>, StoreError> {
        access::list_signing_keys(&self.reads, owner).await
    }

    async fn revoke_signing_key(&self, id: &str) -> Result<Option<SigningKey>, StoreError> {
        let id = id.to_owned();
        self.writer.run(move |conn, now| Box::pin(access::revoke_signing_key(conn, now, id))).await
    }

    async fn usage(&self, owner: &Owner) -> Result<Usage, StoreError> {
        Ok(access::usage(&self.reads, owner).await?)
    }

    async fn audit(&self, entry: &AuditEntry) -> Result<(), StoreError> {
        let entry = entry.clone();
        self.writer.run(move |conn, now| Box::pin(access::audit(conn, now, entry))).await
    }

    async fn list_audit(&self, page: &PageRequest<Uuid>) -> Result<Vec<AuditEntry>, StoreError> {
        access::list_audit(&self.reads, page).await
    }

    async fn count_queued(&self, lane: Lane, at_most: u64) -> Result<u64, StoreError> {
        outbox::count_queued(&self.reads, lane, at_most).await
    }

    async fn job_counts(&self) -> Result<Vec<JobCount>, StoreError> {
        jobs::job_counts(&self.reads, self.clock.now()).await
    }

    async fn count_unpublished(&self) -> Result<u64, StoreError> {
        outbox::count_unpublished(&self.reads, self.clock.now()).await
    }
}
