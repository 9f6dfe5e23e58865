//! The registry of workers.

use std::time::Duration;

use chrono::{DateTime, Utc};
use safelight_domain::WorkerId;
use safelight_store::{
    Heartbeat, QueueSlots, RegisteredWorker, ServiceRun, StoreError, WorkerStatus,
};
use sqlx::{PgPool, Row, postgres::PgRow, types::Json};

use super::{interval, rows};
use crate::convert::{duration, to_i64};

pub async fn heartbeat(pool: &PgPool, beat: &Heartbeat) -> Result<(), StoreError> {
    sqlx::query(
        "insert into workers (id, host, pid, version, status, kinds, lanes, concurrency, slots,
                              period_ms, started_at, last_heartbeat_at, services)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, now() - $11, now(), $12)
         on conflict (id) do update
         set status = excluded.status, slots = excluded.slots, services = excluded.services,
             last_heartbeat_at = excluded.last_heartbeat_at",
    )
    .bind(beat.id)
    .bind(&beat.host)
    .bind(i64::from(beat.pid))
    .bind(&beat.version)
    .bind(WorkerStatus::of(beat).as_str())
    .bind(Json(&beat.kinds))
    .bind(Json(&beat.lanes))
    .bind(i32::try_from(beat.concurrency).unwrap_or(i32::MAX))
    .bind(Json(&beat.slots))
    .bind(to_i64(beat.period.as_millis()))
    .bind(interval(beat.uptime))
    .bind(Json(&beat.services))
    .execute(pool)
    .await?;
    Ok(())
}

pub async fn list(pool: &PgPool, limit: u32) -> Result<Vec<RegisteredWorker>, StoreError> {
    let rows = sqlx::query(
        "select id, host, pid, version, status, kinds, lanes, concurrency, slots, period_ms,
                started_at, last_heartbeat_at, services,
                (extract(epoch from now() - last_heartbeat_at) * 1000000)::bigint as silent_for
         from workers order by last_heartbeat_at desc, id limit $1",
    )
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?;
    rows.iter().map(worker).collect()
}

pub async fn forget(pool: &PgPool, silent: Duration) -> Result<u64, StoreError> {
    let gone = sqlx::query("delete from workers where last_heartbeat_at <= now() - $1")
        .bind(interval(silent))
        .execute(pool)
        .await?;
    Ok(gone.rows_affected())
}

pub async fn leave(pool: &PgPool, id: WorkerId) -> Result<(), StoreError> {
    sqlx::query("delete from workers where id = $1").bind(id).execute(pool).await?;
    Ok(())
}

fn worker(row: &PgRow) -> Result<RegisteredWorker, StoreError> {
    let started_at: DateTime<Utc> = row.try_get("started_at")?;
    let last_heartbeat_at: DateTime<Utc> = row.try_get("last_heartbeat_at")?;
    let silent_for = duration(row.try_get("silent_for")?);
    let beat = Heartbeat {
        id: row.try_get("id")?,
        host: row.try_get("host")?,
        pid: rows::big(row, "pid")?,
        version: row.try_get("version")?,
        draining: row.try_get::<&str, _>("status")? == WorkerStatus::Draining.as_str(),
        kinds: row.try_get::<Json<Vec<String>>, _>("kinds")?.0,
        lanes: row.try_get::<Json<Vec<String>>, _>("lanes")?.0,
        concurrency: rows::number(row, "concurrency")?,
        slots: row.try_get::<Json<Vec<QueueSlots>>, _>("slots")?.0,
        services: row.try_get::<Json<Vec<ServiceRun>>, _>("services")?.0,
        period: Duration::from_millis(rows::big(row, "period_ms")?),
        uptime: (last_heartbeat_at - started_at).to_std().unwrap_or_default(),
    };
    Ok(RegisteredWorker { beat, started_at, last_heartbeat_at, silent_for })
}
