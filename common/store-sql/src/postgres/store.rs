//! The store's handle: its connections, and how statements run on them.

use std::{str::FromStr, time::Duration};

use futures::future::BoxFuture;
use safelight_store::StoreError;
use sqlx::{
    ConnectOptions, Connection, Executor, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::Mutex;

use super::{
    claim::Claiming,
    deadline::with_deadline,
    dialect::{DbRow, Now, Statement},
    gather::Gathered,
    settle::Settling,
};

/// How long a call waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection that was idle for longer is tested before it is used. A shorter time would cost every call a
/// round trip; a longer one, more failures after a restart of the database.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// The PostgreSQL backend.
pub struct PostgresStore {
    pub(super) pool: PgPool,
    pub(super) claims: Gathered<Claiming>,
    pub(super) settles: Gathered<Settling>,
    pub(super) options: PgConnectOptions,
    /// The connection that holds the advisory lock of the embedded queue. The lock ends with it: after a
    /// restart of the database, the next call takes it again.
    pub(super) lock: Mutex<Option<PgConnection>>,
}

/// The backend of the shared modules.
pub type SqlStore = PostgresStore;

impl PostgresStore {
    /// Connects to the database that `url` names, with at most `max_connections`. Fails if
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
        // The pool would try until its timeout and then not report the reason.
        let first = async { Ok(options.connect().await?.close().await?) };
        with_deadline(first).await?;
        Ok(Self {
            claims: Gathered::start(pool.clone()),
            settles: Gathered::start(pool.clone()),
            pool,
            options,
            lock: Mutex::new(None),
        })
    }

    /// All rows of a query.
    pub(super) async fn fetch_all(&self, query: Statement<'_>) -> Result<Vec<DbRow>, StoreError> {
        with_deadline(async { Ok(query.fetch_all(&self.pool).await?) }).await
    }

    /// The first row of a query, if there is one.
    pub(super) async fn fetch_optional(
        &self,
        query: Statement<'_>,
    ) -> Result<Option<DbRow>, StoreError> {
        with_deadline(async { Ok(query.fetch_optional(&self.pool).await?) }).await
    }

    /// The row of a query that always has one.
    pub(super) async fn fetch_one(&self, query: Statement<'_>) -> Result<DbRow, StoreError> {
        with_deadline(async { Ok(query.fetch_one(&self.pool).await?) }).await
    }

    /// A query whose last parameter is the time.
    #[allow(clippy::unused_self)] // SQLite's store has a clock
    pub(super) fn at_now<'q>(&self, query: Statement<'q>) -> Statement<'q> {
        query
    }

    /// Runs a statement. Returns how many rows it changed.
    pub(super) async fn execute(&self, query: Statement<'static>) -> Result<u64, StoreError> {
        with_deadline(async { Ok(query.execute(&self.pool).await?.rows_affected()) }).await
    }

    /// Runs a statement whose last parameter is the time. Returns how many rows it changed.
    pub(super) async fn execute_now(&self, query: Statement<'static>) -> Result<u64, StoreError> {
        self.execute(query).await
    }

    /// Runs a statement whose last parameter is the time. Returns the row that it changed.
    pub(super) async fn change_now(
        &self,
        query: Statement<'static>,
    ) -> Result<Option<DbRow>, StoreError> {
        self.fetch_optional(query).await
    }

    /// Runs work that is one statement.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send,
        F: for<'c> FnOnce(&'c mut PgConnection, Now) -> BoxFuture<'c, Result<T, StoreError>> + Send,
    {
        with_deadline(async {
            let mut conn = self.pool.acquire().await?;
            work(&mut conn, Now).await
        })
        .await
    }

    /// Runs work in a transaction, which is committed unless the work fails.
    pub(super) async fn transaction<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send,
        F: for<'c> FnOnce(&'c mut PgConnection, Now) -> BoxFuture<'c, Result<T, StoreError>> + Send,
    {
        with_deadline(async {
            let mut transaction = self.pool.begin().await?;
            let result = work(&mut transaction, Now).await?;
            transaction.commit().await?;
            Ok(result)
        })
        .await
    }
}
