//! The registry of workers.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::WorkerId;
use safelight_store::{
    Heartbeat, QueueSlots, RegisteredWorker, ServiceRun, StoreError, WorkerStatus, Workers,
};
use sqlx::{Row, types::Json};

use super::{
    dialect::{DbRow, ago, big, integer, micros_since, now, number, span, time},
    store::SqlStore,
};
use crate::convert::{duration, to_i64};

#[async_trait]
impl Workers for SqlStore {
    async fn heartbeat(&self, beat: &Heartbeat) -> Result<(), StoreError> {
        let query = sqlx::query(concat!(
            "insert into workers (id, host, pid, version, status, kinds, lanes, concurrency, slots,
                                  period_ms, services, started_at, last_heartbeat_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, ",
            ago!("$12", "$13"),
            ", ",
            now!("$13"),
            ")
             on conflict (id) do update
             set status = excluded.status, slots = excluded.slots, services = excluded.services,
                 last_heartbeat_at = excluded.last_heartbeat_at"
        ));
        let query = query
            .bind(beat.id)
            .bind(&beat.host)
            .bind(i64::from(beat.pid))
            .bind(&beat.version)
            .bind(WorkerStatus::of(beat).as_str())
            .bind(Json(&beat.kinds))
            .bind(Json(&beat.lanes))
            .bind(integer(beat.concurrency))
            .bind(Json(&beat.slots))
            .bind(to_i64(beat.period.as_millis()))
            .bind(Json(&beat.services))
            .bind(span(beat.uptime));
        self.execute_now(query).await.map(drop)
    }

    async fn list_workers(&self, limit: u32) -> Result<Vec<RegisteredWorker>, StoreError> {
        let query = sqlx::query(concat!(
            "select id, host, pid, version, status, kinds, lanes, concurrency, slots, period_ms,
                    services, started_at, last_heartbeat_at, ",
            micros_since!("last_heartbeat_at", "$2"),
            " as silent_for
             from workers order by last_heartbeat_at desc, id limit $1"
        ));
        let rows = self.fetch_all(self.at_now(query.bind(i64::from(limit)))).await?;
        rows.iter().map(worker).collect()
    }

    async fn forget_workers(&self, silent: Duration) -> Result<u64, StoreError> {
        let query = sqlx::query(concat!(
            "delete from workers where last_heartbeat_at <= ",
            ago!("$1", "$2")
        ));
        self.execute_now(query.bind(span(silent))).await
    }

    async fn leave(&self, worker: WorkerId) -> Result<(), StoreError> {
        let query = sqlx::query("delete from workers where id = $1").bind(worker);
        self.execute(query).await.map(drop)
    }
}

fn worker(row: &DbRow) -> Result<RegisteredWorker, StoreError> {
    let started_at = time(row, "started_at")?;
    let last_heartbeat_at = time(row, "last_heartbeat_at")?;
    let beat = Heartbeat {
        id: row.try_get("id")?,
        host: row.try_get("host")?,
        pid: big(row, "pid")?,
        version: row.try_get("version")?,
        draining: row.try_get::<&str, _>("status")? == WorkerStatus::Draining.as_str(),
        kinds: row.try_get::<Json<Vec<String>>, _>("kinds")?.0,
        lanes: row.try_get::<Json<Vec<String>>, _>("lanes")?.0,
        concurrency: number(row, "concurrency")?,
        slots: row.try_get::<Json<Vec<QueueSlots>>, _>("slots")?.0,
        services: row.try_get::<Json<Vec<ServiceRun>>, _>("services")?.0,
        period: Duration::from_millis(big(row, "period_ms")?),
        uptime: (last_heartbeat_at - started_at).to_std().unwrap_or_default(),
    };
    let silent_for = duration(row.try_get("silent_for")?);
    Ok(RegisteredWorker { beat, started_at, last_heartbeat_at, silent_for })
}
