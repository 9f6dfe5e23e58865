//! The schema and the health of the database.

use std::{
    io,
    sync::{Arc, LazyLock, PoisonError},
};

use async_trait::async_trait;
use safelight_store::{Schema, StoreError};
use sqlx::{SqliteConnection, migrate::Migrator};

use super::{patience::PATIENCE, snapshot::try_lock, store::SqliteStore};
use crate::schema;

static MIGRATIONS: LazyLock<Migrator> =
    LazyLock::new(|| schema::migrator(include!(concat!(env!("OUT_DIR"), "/sqlite.rs"))));

#[async_trait]
impl Schema for SqliteStore {
    async fn migrate(&self) -> Result<(), StoreError> {
        // Within the writer's transaction, which keeps other processes out: sqlx has no lock of its
        // own for SQLite.
        self.write(|conn, _| {
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
        self.write(|conn, _| {
            Box::pin(async move {
                sqlx::query("pragma user_version = 0").execute(conn).await?;
                Ok(())
            })
        })
        .await
    }

    async fn durability_warnings(&self) -> Result<Vec<String>, StoreError> {
        // Each connection sets what matters: see `SqliteStore::open`.
        Ok(Vec::new())
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
        *lock = try_lock(&self.lock_path).map_err(unavailable)?;
        Ok(lock.is_some())
    }

    async fn close(&self) -> Result<(), StoreError> {
        // The reading ones first: only a connection that may write empties the log when it is the last.
        if tokio::time::timeout(PATIENCE, self.reads.close()).await.is_err() {
            tracing::warn!("a read of SQLite did not end; its log may not be emptied");
        }
        self.writer.close().await;
        Ok(())
    }
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
