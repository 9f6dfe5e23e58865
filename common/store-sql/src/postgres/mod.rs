//! The store in PostgreSQL, for a fleet. Every decision is one statement, or, where it must see what
//! came before a lock, one short transaction; `now()`, the database's clock, decides all times.

mod accept;
mod access;
mod backfill;
mod claim;
mod control;
mod deletion;
mod filter;
mod gather;
mod jobs;
mod outbox;
mod prune;
mod read;
mod request;
mod rows;
mod settle;
mod workers;

use std::{io, str::FromStr, sync::Arc, time::Duration};

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
    ConnectOptions, Connection, Executor, PgConnection, PgPool,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions, types::PgInterval},
};
use tokio::sync::Mutex;
use uuid::Uuid;

use self::{claim::Claiming, gather::Gathered, settle::Settling};
use crate::{
    convert::{self, micros},
    schema,
};

static MIGRATIONS: Migrator = sqlx::migrate!("../../migrations/postgres");

/// How long a call waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a call may take in all. A database that hangs without closing its connections would
/// otherwise hold its callers for ever.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// A connection that rested for longer is tested before it is used. Shorter would cost every call a
/// round trip; longer, more failures after the database was restarted.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// The advisory lock of the one process on an in-process queue; a number of no meaning.
const EMBEDDED_QUEUE_LOCK: i64 = 0x5afe_1194_0001;

/// The PostgreSQL backend.
pub struct PostgresStore {
    pool: PgPool,
    claims: Gathered<Claiming>,
    settles: Gathered<Settling>,
    options: PgConnectOptions,
    /// The connection that holds the advisory lock. The lock goes with it: after a database that
    /// was restarted, [`Store::lock_for_embedded_queue`] takes it again.
    lock: Mutex<Option<PgConnection>>,
}

impl PostgresStore {
    /// Connects to the database that `url` names, with at most `max_connections` at once. Fails if
    /// it cannot be reached now.
    pub async fn connect(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let options = PgConnectOptions::from_str(url)?.application_name("safelight");
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .after_connect(|conn, _| {
                // Statements are short and many; compiling one costs more than running it.
                Box::pin(async move { conn.execute("set jit = off").await.map(drop) })
            })
            .before_acquire(|conn, meta| {
                Box::pin(async move {
                    if meta.idle_for > TRUSTED_FOR {
                        conn.ping().await?;
                    }
                    Ok(true)
                })
            })
            .connect_lazy_with(options.clone());
        // The pool would try until its time-out and then not say why it could not.
        let first = async { Ok(options.connect().await?.close().await?) };
        within(first).await?;
        Ok(Self {
            claims: Gathered::start(pool.clone()),
            settles: Gathered::start(pool.clone()),
            pool,
            options,
            lock: Mutex::new(None),
        })
    }
}

/// A duration as an SQL interval.
fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: micros(duration) }
}

/// For counts and pixels, which never come near the limit.
fn integer(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Runs a call within [`CALL_TIMEOUT`]. The pool closes a connection whose call was cut short, if
/// it does not recover.
async fn within<T>(
    call: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| {
        let text = format!("no answer within {} s", CALL_TIMEOUT.as_secs());
        Err(StoreError::Unavailable(Arc::new(io::Error::new(io::ErrorKind::TimedOut, text))))
    })
}

/// The newest migration in the database; 0 for none.
async fn schema_version(pool: &PgPool) -> Result<i64, StoreError> {
    let table: bool = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(pool)
        .await?;
    if !table {
        return Ok(0);
    }
    Ok(sqlx::query_scalar("select coalesce(max(version), 0) from _sqlx_migrations where success")
        .fetch_one(pool)
        .await?)
}

#[async_trait]
impl Store for PostgresStore {
    async fn migrate(&self) -> Result<(), StoreError> {
        schema::refuse_newer(within(schema_version(&self.pool)).await?, &MIGRATIONS)?;
        // Under sqlx's advisory lock, which ends with this connection, and without a time limit: it
        // may rewrite tables.
        let mut conn = within(async { Ok(self.options.connect().await?) }).await?;
        MIGRATIONS.run_direct(None, &mut conn, false).await.map_err(schema::failed)?;
        Ok(conn.close().await?)
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        schema::check(within(schema_version(&self.pool)).await?, &MIGRATIONS)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        within(async {
            sqlx::query("select 1").execute(&self.pool).await?;
            Ok(())
        })
        .await
    }

    async fn lock_for_embedded_queue(&self) -> Result<bool, StoreError> {
        let mut lock = self.lock.lock().await;
        within(async {
            if let Some(conn) = lock.as_mut() {
                if conn.ping().await.is_ok() {
                    return Ok(true);
                }
                *lock = None;
            }
            let mut conn = self.options.connect().await?;
            let locked: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
                .bind(EMBEDDED_QUEUE_LOCK)
                .fetch_one(&mut conn)
                .await?;
            if locked {
                *lock = Some(conn);
            } else {
                conn.close().await?;
            }
            Ok(locked)
        })
        .await
    }

    async fn reserve_key(
        &self,
        key: &IdempotencyKey,
        hold: Duration,
    ) -> Result<KeyState, StoreError> {
        within(accept::reserve_key(&self.pool, key, hold)).await
    }

    async fn release_key(&self, ticket: &KeyTicket) -> Result<(), StoreError> {
        within(accept::release_key(&self.pool, ticket)).await
    }

    async fn extend_key(&self, ticket: &KeyTicket, hold: Duration) -> Result<(), StoreError> {
        within(accept::extend_key(&self.pool, ticket, hold)).await
    }

    async fn accept(&self, upload: &NewUpload) -> Result<Accepted, StoreError> {
        within(accept::accept(&self.pool, upload)).await
    }

    async fn expire_keys(&self, age: Duration, limit: u32) -> Result<u64, StoreError> {
        within(accept::expire_keys(&self.pool, age, limit)).await
    }

    async fn request_rendition(&self, request: &RenditionRequest) -> Result<Requested, StoreError> {
        within(request::request_rendition(&self.pool, request)).await
    }

    async fn task(&self, id: TaskId) -> Result<Option<Task>, StoreError> {
        within(read::task(&self.pool, id)).await
    }

    async fn task_versions(&self, ids: &[TaskId]) -> Result<Vec<TaskVersion>, StoreError> {
        within(read::task_versions(&self.pool, ids)).await
    }

    async fn list_tasks(
        &self,
        filter: &TaskFilter,
        page: &PageRequest<TaskId>,
    ) -> Result<TaskPage, StoreError> {
        within(read::list_tasks(&self.pool, filter, page)).await
    }

    async fn image(&self, id: ImageId) -> Result<Option<Image>, StoreError> {
        within(read::image(&self.pool, id)).await
    }

    async fn list_images(
        &self,
        owner: Option<&Owner>,
        page: &PageRequest<ImageId>,
    ) -> Result<ImagePage, StoreError> {
        within(read::list_images(&self.pool, owner, page)).await
    }

    async fn last_task_of_image(
        &self,
        id: ImageId,
        kind: JobKind,
    ) -> Result<Option<Task>, StoreError> {
        within(read::last_task_of_image(&self.pool, id, kind)).await
    }

    async fn existing_images(&self, ids: &[ImageId]) -> Result<Vec<ImageId>, StoreError> {
        within(read::existing_images(&self.pool, ids)).await
    }

    async fn take_unpublished(
        &self,
        room: &QueueCapacity,
        hold: Duration,
    ) -> Result<OutboxBatch, StoreError> {
        within(outbox::take(&self.pool, room, hold)).await
    }

    async fn mark_published(&self, published: &[JobNotice]) -> Result<(), StoreError> {
        within(outbox::mark_published(&self.pool, published)).await
    }

    async fn return_unpublished(&self, unpublished: &[JobNotice]) -> Result<(), StoreError> {
        within(outbox::return_unpublished(&self.pool, unpublished)).await
    }

    async fn unpublish(
        &self,
        kind: JobKind,
        lane: Lane,
        waited: Duration,
        limit: u32,
    ) -> Result<u64, StoreError> {
        within(outbox::unpublish(&self.pool, kind, lane, waited, limit)).await
    }

    async fn republish(&self, job: JobId, delay: Duration) -> Result<bool, StoreError> {
        within(outbox::republish(&self.pool, job, delay)).await
    }

    async fn count_published(&self, kind: JobKind, lane: Lane) -> Result<u64, StoreError> {
        within(outbox::count_published(&self.pool, kind, lane)).await
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
        let call = Claiming { notice, redelivered, worker, lease, understood };
        within(self.claims.call(call)).await
    }

    async fn renew(&self, leases: &[Lease], lease: Duration) -> Result<Renewed, StoreError> {
        within(jobs::renew(&self.pool, leases, lease)).await
    }

    async fn settle(&self, lease: &Lease, outcome: &Outcome) -> Result<Settled, StoreError> {
        let call = Settling { lease: *lease, outcome: outcome.clone() };
        within(self.settles.call(call)).await
    }

    async fn expired_leases(&self, limit: u32) -> Result<Vec<ClaimedJob>, StoreError> {
        within(jobs::expired_leases(&self.pool, limit)).await
    }

    async fn take_over(&self) -> Result<u64, StoreError> {
        within(jobs::take_over(&self.pool)).await
    }

    async fn cancel(&self, id: TaskId) -> Result<bool, StoreError> {
        within(control::cancel(&self.pool, id)).await
    }

    async fn retry(&self, ids: &[TaskId]) -> Result<Vec<TaskId>, StoreError> {
        within(control::retry(&self.pool, ids)).await
    }

    async fn discarded(&self, limit: u32, age: Duration) -> Result<Vec<Image>, StoreError> {
        within(control::discarded(&self.pool, limit, age)).await
    }

    async fn is_blob_wanted(&self, sha256: &ContentHash) -> Result<bool, StoreError> {
        within(control::is_blob_wanted(&self.pool, sha256)).await
    }

    async fn forget_blob(&self, sha256: &ContentHash) -> Result<bool, StoreError> {
        within(control::forget_blob(&self.pool, sha256)).await
    }

    async fn mark_removed(&self, id: ImageId) -> Result<(), StoreError> {
        within(control::mark_removed(&self.pool, id)).await
    }

    async fn delete_image(&self, request: &DeletionRequest) -> Result<Deletion, StoreError> {
        within(deletion::delete_image(&self.pool, request)).await
    }

    async fn removal(&self, task: TaskId) -> Result<Option<Removal>, StoreError> {
        within(deletion::removal(&self.pool, task)).await
    }

    async fn references(&self, hashes: &[ContentHash]) -> Result<Vec<Reference>, StoreError> {
        within(deletion::references(&self.pool, hashes)).await
    }

    async fn create_backfill(&self, new: &NewBackfill) -> Result<bool, StoreError> {
        within(backfill::create(&self.pool, new)).await
    }

    async fn lead_backfills(
        &self,
        foreman: WorkerId,
        hold: Duration,
        limit: u32,
    ) -> Result<Vec<Backfill>, StoreError> {
        within(backfill::lead(&self.pool, foreman, hold, limit)).await
    }

    async fn count_images(&self, filter: &ImageFilter) -> Result<u64, StoreError> {
        within(backfill::count_images(&self.pool, filter)).await
    }

    async fn walk_images(
        &self,
        filter: &ImageFilter,
        after: Option<ImageId>,
        limit: u32,
    ) -> Result<Vec<Image>, StoreError> {
        within(backfill::walk_images(&self.pool, filter, after, limit)).await
    }

    async fn images_with_blobs(
        &self,
        owner: &Owner,
        hashes: &[ContentHash],
    ) -> Result<Vec<(ContentHash, ImageId)>, StoreError> {
        within(backfill::images_with_blobs(&self.pool, owner, hashes)).await
    }

    async fn obstacles(&self, images: &[ImageId]) -> Result<Vec<Obstacle>, StoreError> {
        within(backfill::obstacles(&self.pool, images)).await
    }

    async fn advance_backfill(&self, step: &Advance) -> Result<bool, StoreError> {
        within(backfill::advance(&self.pool, step)).await
    }

    async fn tally_backfill(&self, id: TaskId, limit: u32) -> Result<u64, StoreError> {
        within(backfill::tally(&self.pool, id, limit)).await
    }

    async fn retry_backfill(&self, id: TaskId, limit: u32) -> Result<u64, StoreError> {
        within(control::retry_children(&self.pool, id, limit)).await
    }

    async fn pause_backfill(&self, id: TaskId, paused: bool) -> Result<bool, StoreError> {
        within(backfill::pause(&self.pool, id, paused)).await
    }

    async fn backfill_report(
        &self,
        id: TaskId,
        after: Option<Uuid>,
        limit: u32,
    ) -> Result<Vec<Item>, StoreError> {
        within(backfill::report(&self.pool, id, after, limit)).await
    }

    async fn prune_tasks(&self, age: Duration, limit: u32) -> Result<u64, StoreError> {
        within(prune::prune(&self.pool, age, convert::id_of_age(age), limit)).await
    }

    async fn heartbeat(&self, beat: &Heartbeat) -> Result<(), StoreError> {
        within(workers::heartbeat(&self.pool, beat)).await
    }

    async fn list_workers(&self, limit: u32) -> Result<Vec<RegisteredWorker>, StoreError> {
        within(workers::list(&self.pool, limit)).await
    }

    async fn forget_workers(&self, silent: Duration) -> Result<u64, StoreError> {
        within(workers::forget(&self.pool, silent)).await
    }

    async fn leave(&self, worker: WorkerId) -> Result<(), StoreError> {
        within(workers::leave(&self.pool, worker)).await
    }

    async fn create_api_key(&self, new: &NewApiKey) -> Result<(), StoreError> {
        within(access::create_key(&self.pool, new)).await
    }

    async fn api_key(&self, prefix: &str) -> Result<Option<KnownApiKey>, StoreError> {
        within(access::key(&self.pool, prefix)).await
    }

    async fn has_api_keys(&self) -> Result<bool, StoreError> {
        within(access::has_keys(&self.pool)).await
    }

    async fn list_api_keys(
        &self,
        owner: Option<&Owner>,
        page: &PageRequest<Uuid>,
    ) -> Result<Vec<ApiKey>, StoreError> {
        within(access::list_keys(&self.pool, owner, page)).await
    }

    async fn revoke_api_key(&self, id: Uuid) -> Result<Option<ApiKey>, StoreError> {
        within(access::revoke_key(&self.pool, id)).await
    }

    async fn note_key_use(&self, id: Uuid) -> Result<(), StoreError> {
        within(access::note_key_use(&self.pool, id)).await
    }

    async fn create_signing_key(
        &self,
        new: &NewSigningKey,
        at_most: u32,
    ) -> Result<bool, StoreError> {
        within(access::create_signing_key(&self.pool, new, at_most)).await
    }

    async fn signing_key(&self, id: &str) -> Result<Option<LiveSigningKey>, StoreError> {
        within(access::signing_key(&self.pool, id)).await
    }

    async fn newest_signing_key(
        &self,
        owner: &Owner,
    ) -> Result<Option<LiveSigningKey>, StoreError> {
        within(access::newest_signing_key(&self.pool, owner)).await
    }

    async fn list_signing_keys(
        &self,
        owner: Option<&Owner>,
    ) -> Result<Vec<SigningKey>, StoreError> {
        within(access::list_signing_keys(&self.pool, owner)).await
    }

    async fn revoke_signing_key(&self, id: &str) -> Result<Option<SigningKey>, StoreError> {
        within(access::revoke_signing_key(&self.pool, id)).await
    }

    async fn usage(&self, owner: &Owner) -> Result<Usage, StoreError> {
        within(async { Ok(access::usage(&self.pool, owner).await?) }).await
    }

    async fn audit(&self, entry: &AuditEntry) -> Result<(), StoreError> {
        within(access::audit(&self.pool, entry)).await
    }

    async fn list_audit(&self, page: &PageRequest<Uuid>) -> Result<Vec<AuditEntry>, StoreError> {
        within(access::list_audit(&self.pool, page)).await
    }

    async fn count_queued(&self, lane: Lane, at_most: u64) -> Result<u64, StoreError> {
        within(outbox::count_queued(&self.pool, lane, at_most)).await
    }

    async fn job_counts(&self) -> Result<Vec<JobCount>, StoreError> {
        within(jobs::job_counts(&self.pool)).await
    }

    async fn count_unpublished(&self) -> Result<u64, StoreError> {
        within(outbox::count_unpublished(&self.pool)).await
    }
}
