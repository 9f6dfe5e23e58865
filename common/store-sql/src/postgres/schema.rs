//! The schema and the health of the database.

use std::sync::LazyLock;

use async_trait::async_trait;
use safelight_store::{Schema, StoreError};
use sqlx::{ConnectOptions, Connection, PgPool, migrate::Migrator};

use super::{deadline::with_deadline, store::PostgresStore};
use crate::schema;

static MIGRATIONS: LazyLock<Migrator> =
    LazyLock::new(|| schema::migrator(include!(concat!(env!("OUT_DIR"), "/postgres.rs"))));

/// The advisory lock of the one process on an in-process queue; a number without a meaning.
const EMBEDDED_QUEUE_LOCK: i64 = 0x5afe_1194_0001;

#[async_trait]
impl Schema for PostgresStore {
    async fn migrate(&self) -> Result<(), StoreError> {
        schema::refuse_newer(with_deadline(schema_version(&self.pool)).await?, &MIGRATIONS)?;
        // Under sqlx's advisory lock, which ends with this connection, and without a time limit: it
        // may rewrite tables.
        let mut conn = with_deadline(async { Ok(self.options.connect().await?) }).await?;
        MIGRATIONS.run_direct(None, &mut conn, false).await.map_err(schema::failed)?;
        Ok(conn.close().await?)
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        schema::check(with_deadline(schema_version(&self.pool)).await?, &MIGRATIONS)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        with_deadline(async {
            sqlx::query("select 1").execute(&self.pool).await?;
            Ok(())
        })
        .await
    }

    async fn lock_for_embedded_queue(&self) -> Result<bool, StoreError> {
        let mut lock = self.lock.lock().await;
        with_deadline(async {
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
