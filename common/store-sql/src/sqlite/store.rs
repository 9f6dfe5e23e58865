//! The store's handle: its file and connections, and how statements run on them.

use std::{
    fs::File,
    future::{Ready, ready},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use safelight_store::StoreError;
use sqlx::{
    ConnectOptions, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    checkpoint::Checkpoints,
    clock::Clock,
    database_files::DatabaseFiles,
    dialect::{DbRow, Now, Statement, bind_now},
    disk_space::DiskSpace,
    fs_permissions,
    gather::{Call, Gathered},
    patience::PATIENCE,
    writer::Writer,
};
use crate::calls::{Claiming, Settling};

/// Concurrent reading connections.
const READERS: u32 = 4;

/// The SQLite backend.
pub struct SqliteStore {
    pub(super) reads: SqlitePool,
    pub(super) writer: Writer,
    pub(super) claims: Gathered<Claiming>,
    pub(super) settles: Gathered<Settling>,
    pub(super) clock: Clock,
    space: DiskSpace,
    pub(super) lock_path: PathBuf,
    /// Held while this process works on an in-process queue.
    pub(super) lock: Mutex<Option<File>>,
}

/// Nothing: one process works on the database.
pub struct Turn;

/// The backend of the shared modules.
pub type SqlStore = SqliteStore;

impl SqliteStore {
    /// Opens the database in the file `path`. If the file and its folder do not exist, creates them so that
    /// no other user can read them.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        // NORMAL would lose the last commits when the power fails: uploads that were answered with 202.
        Self::open_with(path, SqliteSynchronous::Full, Clock::default(), Checkpoints::of(path))
            .await
    }

    /// Opens it for a simulation: with `clock`, and without syncing, because nothing survives a simulation.
    #[cfg(feature = "testing")]
    pub async fn open_simulated(path: &Path, clock: Clock) -> Result<Self, StoreError> {
        Self::open_with(path, SqliteSynchronous::Off, clock, Checkpoints::never()).await
    }

    async fn open_with(
        path: &Path,
        synchronous: SqliteSynchronous,
        clock: Clock,
        checkpoints: Checkpoints,
    ) -> Result<Self, StoreError> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs_permissions::make_folder(folder).map_err(|error| {
                let text = format!("cannot make the folder {}: {error}", folder.display());
                StoreError::Unavailable(Arc::new(io::Error::new(error.kind(), text)))
            })?;
        }
        // SQLite creates its log and shared memory with the permissions of the file. If the file cannot be
        // created, SQLite reports why.
        drop(fs_permissions::make_file(path));
        let options = SqliteConnectOptions::new().filename(path).foreign_keys(true);
        let options = options.busy_timeout(PATIENCE);
        let writing = options
            .clone()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(synchronous)
            // Releases the log's space after a burst.
            .pragma("journal_size_limit", "67108864");
        let space = DiskSpace::of(path);
        let conn = connect(&writing).await.map_err(|error| cannot_open(path, &space, error))?;
        let reads = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(PATIENCE)
            // They are local and never break; a test would double every read.
            .test_before_acquire(false)
            .connect_lazy_with(options.read_only(true));
        Ok(Self {
            reads,
            writer: Writer::start(
                writing,
                conn,
                clock.clone(),
                checkpoints,
                Some(DatabaseFiles::of(path)),
            ),
            claims: Gathered::default(),
            settles: Gathered::default(),
            clock,
            space,
            lock_path: lock_path(path),
            lock: Mutex::new(None),
        })
    }

    /// Waits for a query on a connection for reads.
    async fn read<T>(
        &self,
        query: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        query.await.map_err(|error| self.space.explain(error.into()))
    }

    /// All rows of a query.
    pub(super) async fn fetch_all(&self, query: Statement<'_>) -> Result<Vec<DbRow>, StoreError> {
        self.read(query.fetch_all(&self.reads)).await
    }

    /// The first row of a query, if there is one.
    pub(super) async fn fetch_optional(
        &self,
        query: Statement<'_>,
    ) -> Result<Option<DbRow>, StoreError> {
        self.read(query.fetch_optional(&self.reads)).await
    }

    /// The row of a query that always has one.
    pub(super) async fn fetch_one(&self, query: Statement<'_>) -> Result<DbRow, StoreError> {
        self.read(query.fetch_one(&self.reads)).await
    }

    /// The time for a query outside of a transaction.
    pub(super) fn now(&self) -> Now {
        self.clock.now()
    }

    /// A query whose last parameter is the time.
    pub(super) fn at_now<'q>(&self, query: Statement<'q>) -> Statement<'q> {
        bind_now(query, self.now())
    }

    /// Runs a statement. Returns how many rows it changed.
    pub(super) async fn execute(&self, query: Statement<'static>) -> Result<u64, StoreError> {
        self.write(|conn, _| {
            Box::pin(async move { Ok(query.execute(conn).await?.rows_affected()) })
        })
        .await
    }

    /// Runs a statement whose last parameter is the time. Returns how many rows it changed.
    pub(super) async fn execute_now(&self, query: Statement<'static>) -> Result<u64, StoreError> {
        self.write(|conn, now| {
            Box::pin(async move { Ok(bind_now(query, now).execute(conn).await?.rows_affected()) })
        })
        .await
    }

    /// Runs a statement whose last parameter is the time. Returns the row that it changed.
    pub(super) async fn change_now(
        &self,
        query: Statement<'static>,
    ) -> Result<Option<DbRow>, StoreError> {
        self.write(|conn, now| {
            Box::pin(async move { Ok(bind_now(query, now).fetch_optional(conn).await?) })
        })
        .await
    }

    /// Runs work that needs no transaction of its own on PostgreSQL. Here all work runs in one.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection, i64) -> BoxFuture<'c, Result<T, StoreError>>
            + Send
            + 'static,
    {
        self.transaction(work).await
    }

    /// Lets one process at a time bring times back: here there is only one.
    #[allow(clippy::unused_self)] // PostgreSQL's store locks
    pub(super) fn clock_turn(&self) -> Ready<Result<Option<Turn>, StoreError>> {
        ready(Ok(Some(Turn)))
    }

    /// Ends a turn.
    #[allow(clippy::unused_self)] // PostgreSQL's store unlocks
    pub(super) fn end_clock_turn(&self, _: Turn) -> Ready<()> {
        ready(())
    }

    /// Runs work in a transaction, which is committed unless the work fails.
    pub(super) async fn transaction<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection, i64) -> BoxFuture<'c, Result<T, StoreError>>
            + Send
            + 'static,
    {
        self.writer.run(work).await.map_err(|error| self.space.explain(error))
    }

    /// Carries out a call in a transaction, alone or with others of its kind.
    pub(super) async fn gathered<C: Call>(
        &self,
        calls: &Gathered<C>,
        call: C,
    ) -> Result<C::Answer, StoreError> {
        calls.call(&self.writer, call).await.map_err(|error| self.space.explain(error))
    }
}

/// The file that a process locks to be the only one that works on this database.
pub(super) fn lock_path(path: &Path) -> PathBuf {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    lock.into()
}

/// Opens the file. If several processes open a new one at the same time, the change to WAL can fail with
/// `SQLITE_BUSY` immediately, despite the busy timeout (<https://www.sqlite.org/wal.html>, section 9).
async fn connect(options: &SqliteConnectOptions) -> Result<SqliteConnection, sqlx::Error> {
    let started = Instant::now();
    loop {
        match options.connect().await {
            Err(error) if is_busy(&error) && started.elapsed() < PATIENCE => {
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

/// SQLite's own message does not name the file.
fn cannot_open(path: &Path, space: &DiskSpace, error: sqlx::Error) -> StoreError {
    let text = format!("cannot open {}: {error}", path.display());
    let error = space.explain(error.into());
    let cause = Arc::new(io::Error::other(text));
    match error {
        StoreError::Full(_) => StoreError::Full(cause),
        StoreError::Unavailable(_) => StoreError::Unavailable(cause),
        _ => StoreError::Database(cause),
    }
}
