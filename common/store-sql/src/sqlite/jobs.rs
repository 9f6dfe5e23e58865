//! Running jobs: claims, leases and settles.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::{ImageId, JobId, JobNotice, Lane, WorkerId};
use safelight_store::{
    Claim, ClaimedJob, JobCount, Jobs, Lease, Outcome, Renewed, Settled, StoreError, ending::Ending,
};
use sqlx::{Row, SqliteConnection, types::Json};

use super::{
    counts,
    dialect::number,
    effects,
    finish::finish_tasks,
    lost_leases,
    notices::{insert_notices, replace_notices},
    rows::{self, backfill_joins, blob_joins, claimed_columns, image_columns},
    store::SqliteStore,
};
use crate::convert::micros;

#[async_trait]
impl Jobs for SqliteStore {
    async fn claim(
        &self,
        notice: &JobNotice,
        redelivered: bool,
        worker: WorkerId,
        lease: Duration,
        understood: u32,
    ) -> Result<Claim, StoreError> {
        let notice = *notice;
        self.write(move |conn, now| {
            Box::pin(claim(conn, now, notice, redelivered, worker, lease, understood))
        })
        .await
    }

    async fn renew(&self, leases: &[Lease], lease: Duration) -> Result<Renewed, StoreError> {
        let pair = |lease: &Lease| (lease.job.0.simple().to_string(), lease.fence);
        let list = Json(leases.iter().map(pair).collect::<Vec<_>>());
        self.write(move |conn, now| Box::pin(renew(conn, list, now + micros(lease)))).await
    }

    async fn settle(&self, lease: &Lease, outcome: &Outcome) -> Result<Settled, StoreError> {
        let (lease, outcome) = (*lease, outcome.clone());
        self.transaction(move |conn, now| Box::pin(settle(conn, now, lease, outcome))).await
    }

    async fn expired_leases(&self, limit: u32) -> Result<Vec<ClaimedJob>, StoreError> {
        lost_leases::expired_leases(self, limit).await
    }

    async fn take_over(&self) -> Result<u64, StoreError> {
        self.transaction(|conn, now| Box::pin(lost_leases::take_over(conn, now))).await
    }

    async fn job_counts(&self) -> Result<Vec<JobCount>, StoreError> {
        counts::job_counts(self).await
    }

    async fn count_queued(&self, lane: Lane, at_most: u64) -> Result<u64, StoreError> {
        counts::count_queued(self, lane, at_most).await
    }
}

async fn claim(
    conn: &mut SqliteConnection,
    now: i64,
    notice: JobNotice,
    redelivered: bool,
    worker: WorkerId,
    lease: Duration,
    understood: u32,
) -> Result<Claim, StoreError> {
    // One script: each statement alone would cross to the connection's thread and back. The task's row only changes,
    // and the job is only returned, if the first statement changed the job's row.
    let rows = sqlx::query(concat!(
        "update jobs
         set status = 'running', fence = fence + 1, lease_until = $2, worker_id = $3,
             updated_at = $4
         where id = $1 and fence - released < max_attempts and needs_version <= $7
           and (status = 'queued' and run_at <= $4
                or status = 'running' and (lease_until <= $4
                    or $5 and fence = $6 + 1 and worker_id is not $3));
         update tasks set status = 'running', version = version + 1, updated_at = $4
         where id = (select task_id from jobs where id = $1) and changes() = 1;
         select",
        claimed_columns!(),
        image_columns!(),
        "from jobs j join images i on i.id = j.image_id",
        backfill_joins!(),
        blob_joins!(),
        "where j.id = $1 and changes() = 1 order by r.preset, r.fingerprint, r.format"
    ))
    .bind(notice.job)
    .bind(now + micros(lease))
    .bind(worker)
    .bind(now)
    .bind(redelivered)
    .bind(notice.generation)
    .bind(understood)
    .fetch_all(&mut *conn)
    .await?;
    match rows::claimed_jobs(&rows)?.pop() {
        Some(job) => Ok(Claim::Run(Box::new(job))),
        None => unclaimed(conn, now, notice.job, understood).await,
    }
}

/// Why there was nothing to claim.
async fn unclaimed(
    conn: &mut SqliteConnection,
    now: i64,
    job: JobId,
    understood: u32,
) -> Result<Claim, StoreError> {
    let newer: bool = sqlx::query_scalar(
        "select exists (select 1 from jobs
                        where id = $1 and status = 'queued' and run_at <= $2 and needs_version > $3)",
    )
    .bind(job)
    .bind(now)
    .bind(understood)
    .fetch_one(conn)
    .await?;
    Ok(if newer { Claim::Newer } else { Claim::Nothing })
}

async fn renew(
    conn: &mut SqliteConnection,
    leases: Json<Vec<(String, u32)>>,
    until: i64,
) -> Result<Renewed, StoreError> {
    let rows = sqlx::query(
        "update jobs set lease_until = $2
         where status = 'running' and (id, fence) in (
             select unhex(value ->> 0), value ->> 1 from json_each($1))
         returning id, fence",
    )
    .bind(leases)
    .bind(until)
    .fetch_all(conn)
    .await?;
    let held =
        rows.iter().map(|row| Ok(Lease { job: row.try_get("id")?, fence: number(row, "fence")? }));
    Ok(Renewed { held: held.collect::<Result<_, StoreError>>()? })
}

/// One script, as a claim is. The statements after the first are for a lease that is still held; the second one
/// always changes a row then.
const SETTLE: &str = concat!(
    "update jobs
     set status = case when $3 = 'queued' and fence - released - $4 >= max_attempts
                       then 'failed' else $3 end,
         released = released + $4,
         run_at = case $3 when 'queued' then $5 else run_at end,
         waiting_since = case $3 when 'queued' then $5 else waiting_since end,
         error_code = case when $4 = 0 or $6 is not null then $6 else error_code end,
         error_message = case when $4 = 0 or $6 is not null then $7 else error_message end,
         note = case $4 when 0 then $9 else note end,
         lease_until = null, worker_id = null, updated_at = $8
     where id = $1 and fence = $2 and status = 'running'
     returning image_id, status; ",
    finish_tasks!(
        "select task_id, status = 'succeeded' as succeeded, status = 'failed' as failed,
                0 as cancelled
         from jobs where id = $1 and changes() = 1",
        "$8"
    ),
    "-- Its own renditions are made: it may show those of its blob.
     update images set fresh = 0
     where changes() = 1 and fresh
       and id = (select image_id from jobs
                 where id = $1 and status = 'succeeded' and (kind = 'thumbnail' or $10))"
);

async fn settle(
    conn: &mut SqliteConnection,
    now: i64,
    lease: Lease,
    outcome: Outcome,
) -> Result<Settled, StoreError> {
    let ending = Ending::of(&outcome);
    let settled = sqlx::query(SETTLE)
        .bind(lease.job)
        .bind(lease.fence)
        .bind(ending.status.as_str())
        .bind(ending.released)
        .bind(now + micros(ending.delay))
        .bind(ending.failure.map(|failure| failure.code.as_str()))
        .bind(ending.failure.map(|failure| failure.message.as_str()))
        .bind(now)
        .bind(ending.note)
        .bind(ending.has_renditions())
        // Not `fetch_optional`: that stops at the first row, and does not run the statements after it.
        .fetch_all(&mut *conn)
        .await?;
    let [job] = settled.as_slice() else { return Ok(Settled::Stale) };
    let image: ImageId = job.try_get("image_id")?;
    for effect in ending.effects {
        effects::apply(conn, now, image, effect).await?;
    }
    if job.try_get::<&str, _>("status")? == "queued" {
        queue_retry(conn, lease.job).await?;
    }
    Ok(Settled::Applied)
}

/// Puts a job that is queued again into the outbox, due when it may run.
async fn queue_retry(conn: &mut SqliteConnection, job: JobId) -> Result<(), StoreError> {
    sqlx::query(concat!(insert_notices!(), "run_at from jobs where id = $1", replace_notices!()))
        .bind(job)
        .execute(conn)
        .await?;
    Ok(())
}
