//! The schema and the health of the database.

use std::sync::LazyLock;

use async_trait::async_trait;
use safelight_store::{Schema, StoreError};
use sqlx::{Connection, Executor, PgPool, Row, migrate::Migrator};

use super::{proof::prove_commit, store::PostgresStore};
use crate::schema;

static MIGRATIONS: LazyLock<Migrator> =
    LazyLock::new(|| schema::migrator(include!(concat!(env!("OUT_DIR"), "/postgres.rs"))));

/// The advisory lock of the one process on an in-process queue; a number without a meaning.
const EMBEDDED_QUEUE_LOCK: i64 = 0x5afe_1194_0001;

/// A migration may rewrite tables, and wait for those who use them. A backup reads all of them.
pub(super) const WITHOUT_LIMITS: &str = "select set_config(name, '0', false) from pg_settings
    where name in ('statement_timeout', 'lock_timeout', 'transaction_timeout',
                   'idle_in_transaction_session_timeout')";

/// What decides whether a committed transaction can be lost. The setting of the role or the server counts, not
/// that of this session. A standby is a connection that copies the server's log, other than a backup or a
/// client of logical replication.
const DURABILITY: &str = "select current_setting('fsync') = 'on' as syncs,
        current_setting('full_page_writes') = 'on' as writes_full_pages,
        (select reset_val from pg_settings where name = 'synchronous_commit') as synchronous_commit,
        current_setting('synchronous_standby_names') <> '' as has_synchronous_standbys,
        exists (select from pg_stat_replication r
                where r.state is distinct from 'backup'
                  and not exists (select from pg_replication_slots s
                                  where s.active_pid = r.pid and s.slot_type = 'logical'))
            as has_standbys";

#[async_trait]
impl Schema for PostgresStore {
    async fn migrate(&self) -> Result<(), StoreError> {
        schema::refuse_newer(self.schema_version().await?, &MIGRATIONS)?;
        // Under sqlx's advisory lock, which ends with this connection, and without a time limit.
        let connect = async {
            let (_, mut conn) = self.servers.connect_alone().await?;
            conn.execute(WITHOUT_LIMITS).await?;
            Ok(conn)
        };
        let mut conn = self.servers.call(connect).await?;
        MIGRATIONS.run_direct(None, &mut conn, false).await.map_err(schema::failed)?;
        Ok(conn.close().await?)
    }

    async fn check_schema(&self) -> Result<(), StoreError> {
        schema::check(self.schema_version().await?, &MIGRATIONS)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        let call = async { prove_commit(&mut *self.servers.pool().acquire().await?).await };
        self.servers.call(call).await
    }

    async fn durability_warnings(&self) -> Result<Vec<String>, StoreError> {
        let row = self.fetch_one(sqlx::query(DURABILITY)).await?;
        let mut warnings = Vec::new();
        let mut warn = |applies: bool, warning: &str| {
            if applies {
                warnings.push(warning.to_owned());
            }
        };
        warn(
            !row.try_get::<bool, _>("syncs")?,
            "PostgreSQL runs with fsync = off: a power loss can lose accepted uploads and damage the database; \
             set fsync = on",
        );
        warn(
            !row.try_get::<bool, _>("writes_full_pages")?,
            "PostgreSQL runs with full_page_writes = off: a power loss can damage the database; set \
             full_page_writes = on",
        );
        let commit: &str = row.try_get("synchronous_commit")?;
        let is_synchronous: bool = row.try_get("has_synchronous_standbys")?;
        warn(
            commit == "off",
            "synchronous_commit is off for this role or server; Safelight's own sessions set it to on",
        );
        warn(
            commit == "local" && is_synchronous,
            "synchronous_commit is local, so synchronous_standby_names has no effect: a fail-over can lose the \
             last accepted uploads; set synchronous_commit = on",
        );
        warn(
            !is_synchronous && row.try_get("has_standbys")?,
            "PostgreSQL has standbys, and none is synchronous: a fail-over to one of them can lose the last \
             accepted uploads; set synchronous_standby_names, see docs/fleet.md#fail-over-of-postgresql",
        );
        Ok(warnings)
    }

    async fn lock_for_embedded_queue(&self) -> Result<bool, StoreError> {
        let mut lock = self.lock.lock().await;
        let call = async {
            if let Some((server, conn)) = lock.as_mut() {
                if *server == self.servers.index() && conn.ping().await.is_ok() {
                    return Ok(true);
                }
                *lock = None;
            }
            let (server, mut conn) = self.servers.connect_alone().await?;
            let locked: bool = sqlx::query_scalar("select pg_try_advisory_lock($1)")
                .bind(EMBEDDED_QUEUE_LOCK)
                .fetch_one(&mut conn)
                .await?;
            if locked {
                *lock = Some((server, conn));
            } else {
                conn.close().await?;
            }
            Ok(locked)
        };
        self.servers.call(call).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        let call = async {
            if let Some((_, conn)) = self.lock.lock().await.take() {
                conn.close().await?;
            }
            self.servers.pool().close().await;
            Ok(())
        };
        self.servers.call(call).await
    }
}

impl PostgresStore {
    async fn schema_version(&self) -> Result<i64, StoreError> {
        let pool = self.servers.pool();
        self.servers.call(schema_version(&pool)).await
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
