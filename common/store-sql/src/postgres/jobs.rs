//! Running jobs beside their claims and ends: keeping leases, and what the rescuer and the figures ask.

use std::time::Duration;

use safelight_domain::JobId;
use safelight_store::{ClaimedJob, JobCount, Lease, Renewed, StoreError};
use sqlx::{PgPool, Row, postgres::PgRow};
use uuid::Uuid;

use super::{
    integer, interval,
    rows::{self, backfill_joins, blob_joins, claimed_columns, image_columns},
};
use crate::convert::readable;

pub async fn renew(
    pool: &PgPool,
    leases: &[Lease],
    lease: Duration,
) -> Result<Renewed, StoreError> {
    let (jobs, fences): (Vec<Uuid>, Vec<i32>) =
        leases.iter().map(|lease| (lease.job.0, integer(lease.fence))).unzip();
    let rows = sqlx::query(
        "update jobs j set lease_until = now() + $3
         from unnest($1::uuid[], $2::int[]) as l (id, fence)
         where j.id = l.id and j.fence = l.fence and j.status = 'running'
         returning j.id, j.fence",
    )
    .bind(jobs)
    .bind(fences)
    .bind(interval(lease))
    .fetch_all(pool)
    .await?;
    let held = rows
        .iter()
        .map(|row| Ok(Lease { job: row.try_get("id")?, fence: rows::number(row, "fence")? }));
    Ok(Renewed { held: held.collect::<Result<_, StoreError>>()? })
}

pub async fn expired_leases(pool: &PgPool, limit: u32) -> Result<Vec<ClaimedJob>, StoreError> {
    let rows = sqlx::query(concat!(
        "with expired as (
             select * from jobs where status = 'running' and lease_until <= now()
             order by lease_until, id limit $1)
         select",
        claimed_columns!(),
        image_columns!(),
        "from expired j join images i on i.id = j.image_id",
        backfill_joins!(),
        blob_joins!(),
        "order by j.lease_until, j.id, r.preset, r.fingerprint, r.format"
    ))
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?;
    let job = |row: &PgRow| row.try_get::<JobId, _>("job_id").ok();
    let each = rows.chunk_by(|one, next| job(one) == job(next));
    Ok(readable(each.map(rows::claimed_jobs))?.concat())
}

pub async fn take_over(pool: &PgPool) -> Result<u64, StoreError> {
    let expired = sqlx::query(
        "with freed as (delete from idempotency_keys where task_id is null),
         gone as (delete from workers)
         update jobs set lease_until = now() where status = 'running'",
    )
    .execute(pool)
    .await?;
    Ok(expired.rows_affected())
}

pub async fn job_counts(pool: &PgPool) -> Result<Vec<JobCount>, StoreError> {
    // One arm per partial index.
    let rows = sqlx::query(
        "select kind, lane, 'queued' as status, count(*) as jobs,
                count(*) filter (where run_at <= now()) as due,
                coalesce(extract(epoch from now() - min(run_at) filter (where run_at <= now())),
                         0)::float8 as oldest_due
         from jobs where status = 'queued' group by kind, lane
         union all
         select kind, lane, 'running', count(*), 0, 0
         from jobs where status = 'running' group by kind, lane
         union all
         select kind, lane, 'failed', count(*), 0, 0
         from jobs where status = 'failed' group by kind, lane",
    )
    .fetch_all(pool)
    .await?;
    readable(rows.iter().map(|row| {
        Ok(JobCount {
            kind: rows::name(row, "kind")?,
            lane: rows::name(row, "lane")?,
            status: rows::name(row, "status")?,
            count: rows::big(row, "jobs")?,
            due: rows::big(row, "due")?,
            oldest_due_seconds: row.try_get("oldest_due")?,
        })
    }))
}
