//! The registry of workers.

use std::time::Duration;

use safelight_domain::WorkerId;
use safelight_store::{
    Heartbeat, QueueSlots, RegisteredWorker, ServiceRun, StoreError, WorkerStatus,
};
use sqlx::{Row, SqliteConnection, SqlitePool, sqlite::SqliteRow, types::Json};

use super::rows;
use crate::convert::{duration, micros, to_i64};

pub async fn heartbeat(
    conn: &mut SqliteConnection,
    now: i64,
    beat: Heartbeat,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into workers (id, host, pid, version, status, kinds, lanes, concurrency, slots,
                              period_ms, started_at, last_heartbeat_at, services)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
         on conflict (id) do update
         set status = excluded.status, slots = excluded.slots, services = excluded.services,
             last_heartbeat_at = excluded.last_heartbeat_at",
    )
    .bind(beat.id)
    .bind(&beat.host)
    .bind(beat.pid)
    .bind(&beat.version)
    .bind(WorkerStatus::of(&beat).as_str())
    .bind(Json(&beat.kinds))
    .bind(Json(&beat.lanes))
    .bind(beat.concurrency)
    .bind(Json(&beat.slots))
    .bind(to_i64(beat.period.as_millis()))
    .bind(now.saturating_sub(micros(beat.uptime)))
    .bind(now)
    .bind(Json(&beat.services))
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn list(
    reads: &SqlitePool,
    now: i64,
    limit: u32,
) -> Result<Vec<RegisteredWorker>, StoreError> {
    let rows = sqlx::query(
        "select id, host, pid, version, status, kinds, lanes, concurrency, slots, period_ms,
                started_at, last_heartbeat_at, services
         from workers order by last_heartbeat_at desc, id limit $1",
    )
    .bind(limit)
    .fetch_all(reads)
    .await?;
    rows.iter().map(|row| worker(row, now)).collect()
}

pub async fn forget(
    conn: &mut SqliteConnection,
    now: i64,
    silent: Duration,
) -> Result<u64, StoreError> {
    let gone = sqlx::query("delete from workers where last_heartbeat_at <= $1")
        .bind(now.saturating_sub(micros(silent)))
        .execute(conn)
        .await?;
    Ok(gone.rows_affected())
}

pub async fn leave(conn: &mut SqliteConnection, id: WorkerId) -> Result<(), StoreError> {
    sqlx::query("delete from workers where id = $1").bind(id).execute(conn).await?;
    Ok(())
}

fn worker(row: &SqliteRow, now: i64) -> Result<RegisteredWorker, StoreError> {
    let started: i64 = row.try_get("started_at")?;
    let heard: i64 = row.try_get("last_heartbeat_at")?;
    let period: i64 = row.try_get("period_ms")?;
    let beat = Heartbeat {
        id: row.try_get("id")?,
        host: row.try_get("host")?,
        pid: row.try_get("pid")?,
        version: row.try_get("version")?,
        draining: row.try_get::<&str, _>("status")? == WorkerStatus::Draining.as_str(),
        kinds: row.try_get::<Json<Vec<String>>, _>("kinds")?.0,
        lanes: row.try_get::<Json<Vec<String>>, _>("lanes")?.0,
        concurrency: row.try_get("concurrency")?,
        slots: row.try_get::<Json<Vec<QueueSlots>>, _>("slots")?.0,
        services: row.try_get::<Json<Vec<ServiceRun>>, _>("services")?.0,
        period: duration(period.saturating_mul(1000)),
        uptime: duration(heard.saturating_sub(started)),
    };
    Ok(RegisteredWorker {
        beat,
        started_at: rows::time(started)?,
        last_heartbeat_at: rows::time(heard)?,
        silent_for: duration(now.saturating_sub(heard)),
    })
}
