//! Counts of jobs and of the outbox, for the metrics and for backpressure.

use std::time::Duration;

use safelight_domain::{JobKind, Lane};
use safelight_store::{JobCount, StoreError};
use sqlx::Row;

use super::{
    dialect::{big, micros_since, now},
    rows,
    store::SqlStore,
};
use crate::convert::{duration, readable, to_i64};

/// See [`Jobs::job_counts`](safelight_store::Jobs::job_counts).
pub async fn job_counts(store: &SqlStore) -> Result<Vec<JobCount>, StoreError> {
    // One arm per partial index.
    let query = sqlx::query(concat!(
        "select kind, lane, 'queued' as status, count(*) as jobs,
                count(*) filter (where run_at <= ",
        now!("$1"),
        ") as due, ",
        micros_since!("min(run_at)", "$1"),
        " as oldest_due
         from jobs where status = 'queued' group by kind, lane
         union all
         select kind, lane, 'running', count(*), 0, cast(null as bigint)
         from jobs where status = 'running' group by kind, lane
         union all
         select kind, lane, 'failed', count(*), 0, cast(null as bigint)
         from jobs where status = 'failed' group by kind, lane"
    ));
    let rows = store.fetch_all(store.at_now(query)).await?;
    readable(rows.iter().map(|row| {
        let oldest_due: Option<i64> = row.try_get("oldest_due")?;
        Ok(JobCount {
            kind: rows::name(row, "kind")?,
            lane: rows::name(row, "lane")?,
            status: rows::name(row, "status")?,
            count: big(row, "jobs")?,
            due: big(row, "due")?,
            // The oldest of all is the oldest due one, if any is due; otherwise its time is in the future.
            oldest_due_seconds: oldest_due.map_or(Duration::ZERO, duration).as_secs_f64(),
        })
    }))
}

/// See [`Jobs::count_queued`](safelight_store::Jobs::count_queued).
pub async fn count_queued(store: &SqlStore, lane: Lane, at_most: u64) -> Result<u64, StoreError> {
    let query = sqlx::query(
        "select count(*) as jobs from (
             select 1 from jobs where status = 'queued' and lane = $1 limit $2) as waiting",
    );
    big(&store.fetch_one(query.bind(lane.as_str()).bind(to_i64(at_most))).await?, "jobs")
}

/// See [`Outbox::count_published`](safelight_store::Outbox::count_published).
pub async fn count_published(
    store: &SqlStore,
    kind: JobKind,
    lane: Lane,
) -> Result<u64, StoreError> {
    let query = sqlx::query(concat!(
        "select count(*) as jobs from jobs j
         where status = 'queued' and kind = $1 and lane = $2 and run_at <= ",
        now!("$3"),
        " and not exists (select 1 from outbox o where o.job_id = j.id)"
    ));
    let query = store.at_now(query.bind(kind.as_str()).bind(lane.as_str()));
    big(&store.fetch_one(query).await?, "jobs")
}

/// See [`Outbox::count_unpublished`](safelight_store::Outbox::count_unpublished).
pub async fn count_unpublished(store: &SqlStore) -> Result<u64, StoreError> {
    let query =
        sqlx::query(concat!("select count(*) as jobs from outbox where due_at <= ", now!("$1")));
    big(&store.fetch_one(store.at_now(query)).await?, "jobs")
}
