//! Running jobs: claim, renew, settle, and what the rescuer and the figures ask. Each is one
//! statement. All of them lock a job's row before its task's, so that they cannot deadlock.

use std::time::Duration;

use sqlx::{
    PgPool, Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::QueryScalar,
};
use uuid::Uuid;

use super::{
    interval,
    rows::{self, blob_joins, claimed_columns, image_columns},
};
use crate::{
    domain::{ImageFacts, JobId, Placeholder, Rendition, WorkerId},
    store::{
        Claim, ClaimedJob, Doorbell, JobCount, Lease, Outcome, Renewed, Settled, StoreError,
        convert::{readable, to_i64},
        ending::Ending,
    },
};

/// For counts and pixels, which never come near the limit.
fn integer(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

pub async fn claim(
    pool: &PgPool,
    doorbell: &Doorbell,
    redelivered: bool,
    worker: WorkerId,
    lease: Duration,
    understood: u32,
) -> Result<Claim, StoreError> {
    // Of two that claim at once the second waits for the first's row, and then sees it running.
    let rows = sqlx::query(concat!(
        "with claimed as (
             update jobs
             set status = 'running', fence = fence + 1, lease_until = now() + $2, worker_id = $3,
                 updated_at = now()
             where id = $1 and fence - released < max_attempts and needs_version <= $6
               and (status = 'queued' and run_at <= now()
                    or status = 'running' and (lease_until <= now()
                        or $4 and fence = $5 + 1 and worker_id is distinct from $3))
             returning *),
         task as (
             update tasks t set status = 'running', version = t.version + 1, updated_at = now()
             from claimed where t.id = claimed.task_id)
         select",
        claimed_columns!(),
        image_columns!(),
        "from claimed j join images i on i.id = j.image_id",
        blob_joins!(),
        "order by r.preset, r.fingerprint, r.format"
    ))
    .bind(doorbell.job)
    .bind(interval(lease))
    .bind(worker)
    .bind(redelivered)
    .bind(integer(doorbell.generation))
    .bind(integer(understood))
    .fetch_all(pool)
    .await?;
    match rows::claimed_jobs(&rows)?.pop() {
        Some(job) => Ok(Claim::Run(Box::new(job))),
        None => unclaimed(pool, doorbell, understood).await,
    }
}

/// Why there was nothing to claim.
async fn unclaimed(
    pool: &PgPool,
    doorbell: &Doorbell,
    understood: u32,
) -> Result<Claim, StoreError> {
    let newer: bool = sqlx::query_scalar(
        "select exists (select from jobs
                        where id = $1 and status = 'queued' and run_at <= now() and needs_version > $2)",
    )
    .bind(doorbell.job)
    .bind(integer(understood))
    .fetch_one(pool)
    .await?;
    Ok(if newer { Claim::Newer } else { Claim::Nothing })
}

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

/// Settles an attempt, with the statement's further effects. `$1`–`$8` are bound by [`settling`].
///
/// Two jobs of a task may settle at once: the second waits for the task's row and then computes
/// from the counters that the first has left there (READ COMMITTED evaluates the row anew), so
/// exactly one of them sees the last job end.
macro_rules! settle_statement {
    ($effects:literal) => {
        concat!(
            "with job as (
                 update jobs
                 set status = case when $3 = 'queued' and fence - released - $4 >= max_attempts
                                   then 'failed' else $3 end,
                     released = released + $4,
                     run_at = case $3 when 'queued' then now() + $5 else run_at end,
                     waiting_since = case $3 when 'queued' then now() + $5
                                             else waiting_since end,
                     error_code = case $4 when 0 then $6 else error_code end,
                     error_message = case $4 when 0 then $7 else error_message end,
                     note = case $4 when 0 then $8 else note end,
                     lease_until = null, worker_id = null, updated_at = now()
                 where id = $1 and fence = $2 and status = 'running'
                 returning id, task_id, image_id, kind, lane, share, fence, status, run_at),
             task as (
                 update tasks t
                 set jobs_succeeded = jobs_succeeded + (job.status = 'succeeded')::int,
                     jobs_failed = jobs_failed + (job.status = 'failed')::int,
                     version = version + 1, updated_at = now(),
                     status = case
                         when job.status = 'queued'
                              or jobs_succeeded + jobs_failed + jobs_cancelled + 1 < jobs_total
                              then t.status
                         when jobs_cancelled > 0 then 'cancelled'
                         when job.status = 'failed' or jobs_failed > 0 then 'failed'
                         else 'succeeded' end,
                     finished_at = case
                         when job.status = 'queued'
                              or jobs_succeeded + jobs_failed + jobs_cancelled + 1 < jobs_total
                              then finished_at
                         else now() end
                 from job where t.id = job.task_id),
             bell as (
                 insert into outbox (job_id, kind, lane, share, generation, due_at)
                 select id, kind, lane, share, fence, run_at from job where status = 'queued'
                 on conflict (job_id) do update
                 set generation = excluded.generation, due_at = excluded.due_at)",
            $effects,
            " select count(*) from job"
        )
    };
}

pub async fn settle(
    pool: &PgPool,
    lease: &Lease,
    outcome: &Outcome,
) -> Result<Settled, StoreError> {
    let ending = Ending::of(outcome);
    let settled = match outcome {
        Outcome::Written(facts) => written(lease, &ending, facts).fetch_one(pool).await?,
        Outcome::Rendered { renditions, placeholder } => {
            rendered(lease, &ending, renditions, placeholder.as_ref(), &[]).fetch_one(pool).await?
        }
        Outcome::Verified { repaired, forgotten, .. } => {
            rendered(lease, &ending, repaired, None, forgotten).fetch_one(pool).await?
        }
        Outcome::Retry(..) | Outcome::Failed(_) | Outcome::Released => {
            settling(settle_statement!(""), lease, &ending).fetch_one(pool).await?
        }
    };
    Ok(if settled == 0 { Settled::Stale } else { Settled::Applied })
}

type Settling<'q> = QueryScalar<'q, Postgres, i64, PgArguments>;

/// The statement with what every outcome binds.
fn settling<'q>(statement: &'static str, lease: &Lease, ending: &Ending<'q>) -> Settling<'q> {
    sqlx::query_scalar(statement)
        .bind(lease.job)
        .bind(integer(lease.fence))
        .bind(ending.status.as_str())
        .bind(ending.released)
        .bind(interval(ending.delay))
        .bind(ending.failure.map(|failure| failure.code.as_str()))
        .bind(ending.failure.map(|failure| failure.message.as_str()))
        .bind(ending.note)
}

fn written<'q>(lease: &Lease, ending: &Ending<'q>, facts: &'q ImageFacts) -> Settling<'q> {
    let statement = settle_statement!(
        ", facts as (
             update images i
             set format = $9, width = $10, height = $11, orientation = $12, taken_at = $13,
                 latitude = $14, longitude = $15, stored_at = now()
             from job where i.id = job.image_id)"
    );
    settling(statement, lease, ending)
        .bind(facts.format.as_str())
        .bind(integer(facts.width))
        .bind(integer(facts.height))
        .bind(i16::from(facts.orientation))
        .bind(facts.taken_at)
        .bind(facts.gps.map(|gps| gps.latitude))
        .bind(facts.gps.map(|gps| gps.longitude))
}

fn rendered<'q>(
    lease: &Lease,
    ending: &Ending<'q>,
    made: &'q [Rendition],
    placeholder: Option<&'q Placeholder>,
    forgotten: &'q [Rendition],
) -> Settling<'q> {
    // In one order everywhere: two jobs that make the same renditions must not deadlock.
    let statement = settle_statement!(
        ", made as (
             insert into renditions (sha256, preset, fingerprint, format, width, height, bytes,
                                     rendition_sha256)
             select i.sha256, m.preset, m.fingerprint, m.format, m.width, m.height, m.bytes,
                    m.rendition_sha256
             from job join images i on i.id = job.image_id,
                  unnest($9::text[], $10::text[], $11::text[], $12::int[], $13::int[], $14::bigint[],
                         $15::bytea[])
                  as m (preset, fingerprint, format, width, height, bytes, rendition_sha256)
             order by m.preset, m.fingerprint, m.format
             on conflict (sha256, preset, fingerprint, format) do update
             set width = excluded.width, height = excluded.height, bytes = excluded.bytes,
                 rendition_sha256 = excluded.rendition_sha256,
                 created_at = case
                     when renditions.rendition_sha256 = excluded.rendition_sha256
                          then renditions.created_at
                     else excluded.created_at end),
         placeholder as (
             insert into placeholders (sha256, thumbhash, dominant_color)
             select i.sha256, $16, $17 from job join images i on i.id = job.image_id
             where $16::bytea is not null
             on conflict (sha256) do update
             set thumbhash = excluded.thumbhash, dominant_color = excluded.dominant_color),
         forgotten as (
             delete from renditions r
             using job join images i on i.id = job.image_id,
                   unnest($18::text[], $19::text[], $20::text[]) as f (preset, fingerprint, format)
             where r.sha256 = i.sha256 and r.preset = f.preset and r.fingerprint = f.fingerprint
               and r.format = f.format)"
    );
    settling(statement, lease, ending)
        .bind(made.iter().map(|r| r.preset.as_str()).collect::<Vec<_>>())
        .bind(made.iter().map(|r| r.fingerprint.as_str()).collect::<Vec<_>>())
        .bind(made.iter().map(|r| r.format.as_str()).collect::<Vec<_>>())
        .bind(made.iter().map(|r| integer(r.width)).collect::<Vec<_>>())
        .bind(made.iter().map(|r| integer(r.height)).collect::<Vec<_>>())
        .bind(made.iter().map(|r| to_i64(r.bytes)).collect::<Vec<_>>())
        .bind(made.iter().map(|r| r.sha256.as_bytes()).collect::<Vec<_>>())
        .bind(placeholder.map(|placeholder| placeholder.thumbhash.as_slice()))
        .bind(placeholder.map(Placeholder::css_color))
        .bind(forgotten.iter().map(|r| r.preset.as_str()).collect::<Vec<_>>())
        .bind(forgotten.iter().map(|r| r.fingerprint.as_str()).collect::<Vec<_>>())
        .bind(forgotten.iter().map(|r| r.format.as_str()).collect::<Vec<_>>())
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
