//! The store's handle: its connections, and how statements run on them.

use futures::future::BoxFuture;
use safelight_store::StoreError;
use sqlx::{Connection, PgConnection};
use tokio::sync::Mutex;

use super::{
    dialect::{DbRow, Now, Statement},
    gather::Gathered,
    servers::Servers,
};
use crate::calls::{Claiming, Settling};

/// The PostgreSQL backend.
pub struct PostgresStore {
    pub(super) servers: Servers,
    pub(super) claims: Gathered<Claiming>,
    pub(super) settles: Gathered<Settling>,
    /// The connection that holds the advisory lock of the embedded queue, and the index of its server. The lock
    /// ends with it: after a restart of the database, the next call takes it again.
    pub(super) lock: Mutex<Option<(usize, PgConnection)>>,
}

/// The connection that holds an advisory lock, which ends with it.
pub type Turn = PgConnection;

/// The advisory lock of the one process that brings times back; a number without a meaning.
const CLOCK_LOCK: i64 = 0x5afe_1194_0002;

/// The backend of the shared modules.
pub type SqlStore = PostgresStore;

impl PostgresStore {
    /// Connects to the database at `url`: see [`PostgresStore::connect_to`].
    pub async fn connect(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        Self::connect_to(&[url.to_owned()], max_connections).await
    }

    /// Connects with at most `max_connections` to the database at `urls`: a server, or a primary and its
    /// standbys. Fails if none can be reached now, or with [`StoreError::SharedConnections`].
    pub async fn connect_to(urls: &[String], max_connections: u32) -> Result<Self, StoreError> {
        let servers = Servers::connect(urls, max_connections).await?;
        Ok(Self {
            claims: Gathered::start(servers.clone()),
            settles: Gathered::start(servers.clone()),
            servers,
            lock: Mutex::new(None),
        })
    }

    /// All rows of a query.
    pub(super) async fn fetch_all(&self, query: Statement<'_>) -> Result<Vec<DbRow>, StoreError> {
        self.servers.call(async { Ok(query.fetch_all(&self.servers.pool()).await?) }).await
    }

    /// The first row of a query, if there is one.
    pub(super) async fn fetch_optional(
        &self,
        query: Statement<'_>,
    ) -> Result<Option<DbRow>, StoreError> {
        self.servers.call(async { Ok(query.fetch_optional(&self.servers.pool()).await?) }).await
    }

    /// The row of a query that always has one.
    pub(super) async fn fetch_one(&self, query: Statement<'_>) -> Result<DbRow, StoreError> {
        self.servers.call(async { Ok(query.fetch_one(&self.servers.pool()).await?) }).await
    }

    /// The time for a query outside of a transaction.
    #[allow(clippy::unused_self)] // SQLite's store has a clock
    pub(super) fn now(&self) -> Now {
        Now
    }

    /// A query whose last parameter is the time.
    #[allow(clippy::unused_self)] // SQLite's store has a clock
    pub(super) fn at_now<'q>(&self, query: Statement<'q>) -> Statement<'q> {
        query
    }

    /// Runs a statement. Returns how many rows it changed.
    pub(super) async fn execute(&self, query: Statement<'static>) -> Result<u64, StoreError> {
        let call = async { Ok(query.execute(&self.servers.pool()).await?.rows_affected()) };
        self.servers.call(call).await
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
        let call = async {
            let mut conn = self.servers.pool().acquire().await?;
            work(&mut conn, Now).await
        };
        self.servers.call(call).await
    }

    /// Lets one process at a time bring times back. Returns `None` while another one does. The lock is that of a
    /// connection and not of a row, because the work takes many transactions.
    pub(super) async fn clock_turn(&self) -> Result<Option<Turn>, StoreError> {
        let call = async {
            let (_, mut conn) = self.servers.connect_alone().await?;
            let locked: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
                .bind(CLOCK_LOCK)
                .fetch_one(&mut conn)
                .await?;
            if locked {
                return Ok(Some(conn));
            }
            conn.close().await?;
            Ok(None)
        };
        self.servers.call(call).await
    }

    /// Ends a turn. If the connection is broken, the lock has ended already.
    pub(super) async fn end_clock_turn(&self, mut turn: Turn) {
        let call = async {
            // The lock has ended before the caller goes on, unlike after a close.
            sqlx::query("select pg_advisory_unlock($1)")
                .bind(CLOCK_LOCK)
                .execute(&mut turn)
                .await?;
            Ok(turn.close().await?)
        };
        if let Err(error) = self.servers.call(call).await {
            tracing::debug!(%error, "the connection of the clock's lock did not end cleanly");
        }
    }

    /// Runs work in a transaction, which is committed unless the work fails.
    pub(super) async fn transaction<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send,
        F: for<'c> FnOnce(&'c mut PgConnection, Now) -> BoxFuture<'c, Result<T, StoreError>> + Send,
    {
        let call = async {
            let mut transaction = self.servers.pool().begin().await?;
            let result = work(&mut transaction, Now).await?;
            transaction.commit().await?;
            Ok(result)
        };
        self.servers.call(call).await
    }
}
