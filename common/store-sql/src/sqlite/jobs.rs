//! Running jobs: claim, renew, settle, and what the rescuer and the figures ask.

use std::time::Duration;

use safelight_domain::JobNotice;
use safelight_domain::{ImageFacts, ImageId, JobId, Placeholder, Rendition, WorkerId};
use safelight_store::{
    Claim, ClaimedJob, JobCount, Lease, Outcome, Renewed, Settled, StoreError, ending::Ending,
};
use sqlx::{Row, SqliteConnection, SqlitePool, sqlite::SqliteRow, types::Json};

use super::{
    deletion,
    rows::{self, backfill_joins, blob_joins, claimed_columns, image_columns},
};
use crate::convert::{from_sql, micros, readable};

pub async fn claim(
    conn: &mut SqliteConnection,
    now: i64,
    notice: JobNotice,
    redelivered: bool,
    worker: WorkerId,
    lease: Duration,
    understood: u32,
) -> Result<Claim, StoreError> {
    // In one go: every statement by itself is a way to the connection's thread and back. The task's
    // is only touched, and the job only told, if the first statement changed its row.
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

pub async fn renew(
    conn: &mut SqliteConnection,
    now: i64,
    leases: Vec<Lease>,
    lease: Duration,
) -> Result<Renewed, StoreError> {
    let list: Vec<(String, u32)> =
        leases.iter().map(|lease| (lease.job.0.simple().to_string(), lease.fence)).collect();
    let rows = sqlx::query(
        "update jobs set lease_until = $2
         where status = 'running' and (id, fence) in (
             select unhex(value ->> 0), value ->> 1 from json_each($1))
         returning id, fence",
    )
    .bind(Json(list))
    .bind(now + micros(lease))
    .fetch_all(conn)
    .await?;
    let held =
        rows.iter().map(|row| Ok(Lease { job: row.try_get("id")?, fence: row.try_get("fence")? }));
    Ok(Renewed { held: held.collect::<Result<_, StoreError>>()? })
}

pub async fn settle(
    conn: &mut SqliteConnection,
    now: i64,
    lease: Lease,
    outcome: Outcome,
) -> Result<Settled, StoreError> {
    let ending = Ending::of(&outcome);
    let rendered = match &outcome {
        Outcome::Rendered { .. } => true,
        Outcome::Verified { repaired, .. } => !repaired.is_empty(),
        _ => false,
    };
    // In one go, as a claim is. What comes after the first statement is for a lease that still holds; the
    // second always changes a row then. The last one finds its task by what is counted there.
    let held = sqlx::query(
        "update jobs
         set status = case when $3 = 'queued' and fence - released - $4 >= max_attempts
                           then 'failed' else $3 end,
             released = released + $4,
             run_at = case $3 when 'queued' then $5 else run_at end,
             waiting_since = case $3 when 'queued' then $5 else waiting_since end,
             error_code = case $4 when 0 then $6 else error_code end,
             error_message = case $4 when 0 then $7 else error_message end,
             note = case $4 when 0 then $9 else note end,
             lease_until = null, worker_id = null, updated_at = $8
         where id = $1 and fence = $2 and status = 'running'
         returning image_id, status;
         update tasks
         set jobs_succeeded = jobs_succeeded + (job.status = 'succeeded'),
             jobs_failed = jobs_failed + (job.status = 'failed'),
             version = version + 1, updated_at = $8
         from jobs job
         where job.id = $1 and tasks.id = job.task_id and changes() = 1;
         -- Its own renditions were made: it may show them.
         update images set fresh = 0
         where $10 and changes() = 1 and id = (select image_id from jobs where id = $1) and fresh;
         update tasks
         set status = case when jobs_cancelled > 0 then 'cancelled'
                           when jobs_failed > 0 then 'failed'
                           else 'succeeded' end,
             finished_at = $8
         where id = (select task_id from jobs where id = $1) and finished_at is null
           and jobs_succeeded + jobs_failed + jobs_cancelled = jobs_total",
    )
    .bind(lease.job)
    .bind(lease.fence)
    .bind(ending.status.as_str())
    .bind(ending.released)
    .bind(now + micros(ending.delay))
    .bind(ending.failure.map(|failure| failure.code.as_str()))
    .bind(ending.failure.map(|failure| failure.message.as_str()))
    .bind(now)
    .bind(ending.note)
    .bind(rendered)
    // Not `fetch_optional`: that ends with the first row, and with it what comes after.
    .fetch_all(&mut *conn)
    .await?;
    let [job] = held.as_slice() else { return Ok(Settled::Stale) };
    let image: ImageId = job.try_get("image_id")?;
    match &outcome {
        Outcome::Written(facts) => write_facts(conn, image, facts, now).await?,
        Outcome::Rendered { renditions, placeholder } => {
            write_renditions(conn, image, renditions, now).await?;
            write_placeholder(conn, image, placeholder.as_ref(), now).await?;
        }
        Outcome::Verified { repaired, forgotten, .. } => {
            write_renditions(conn, image, repaired, now).await?;
            forget_renditions(conn, image, forgotten).await?;
        }
        Outcome::Deleted { proxies } => deletion::finish(conn, now, image, *proxies).await?,
        Outcome::Retry(..) | Outcome::Failed(_) | Outcome::Released => {}
    }
    let status: String = job.try_get("status")?;
    if status == "queued" {
        republish(conn, lease.job).await?;
    }
    Ok(Settled::Applied)
}

async fn write_facts(
    conn: &mut SqliteConnection,
    image: ImageId,
    facts: &ImageFacts,
    now: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "update images
         set format = $2, width = $3, height = $4, orientation = $5, taken_at = $6,
             latitude = $7, longitude = $8, stored_at = $9
         where id = $1",
    )
    .bind(image)
    .bind(facts.format.as_str())
    .bind(facts.width)
    .bind(facts.height)
    .bind(facts.orientation)
    .bind(facts.taken_at)
    .bind(facts.gps.map(|gps| gps.latitude))
    .bind(facts.gps.map(|gps| gps.longitude))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

async fn write_renditions(
    conn: &mut SqliteConnection,
    image: ImageId,
    renditions: &[Rendition],
    now: i64,
) -> Result<(), StoreError> {
    if renditions.is_empty() {
        return Ok(());
    }
    let made: Vec<_> = renditions
        .iter()
        .map(|one| {
            let format = one.format.as_str();
            let size = (one.width, one.height, one.bytes);
            (&one.preset, &one.fingerprint, format, size, one.sha256.to_string())
        })
        .collect();
    sqlx::query(
        "insert into renditions (sha256, preset, fingerprint, format, width, height, bytes,
                                 rendition_sha256, created_at)
         select i.sha256, m.value ->> 0, m.value ->> 1, m.value ->> 2, m.value ->> '$[3][0]',
                m.value ->> '$[3][1]', m.value ->> '$[3][2]', unhex(m.value ->> 4), $3
         from images i join json_each($2) m
         where i.id = $1
         on conflict (sha256, preset, fingerprint, format) do update
         set width = excluded.width, height = excluded.height, bytes = excluded.bytes,
             rendition_sha256 = excluded.rendition_sha256,
             created_at = case
                 when renditions.rendition_sha256 = excluded.rendition_sha256
                      then renditions.created_at
                 else excluded.created_at end",
    )
    .bind(image)
    .bind(Json(made))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

async fn forget_renditions(
    conn: &mut SqliteConnection,
    image: ImageId,
    renditions: &[Rendition],
) -> Result<(), StoreError> {
    for rendition in renditions {
        sqlx::query(
            "delete from renditions
             where sha256 = (select sha256 from images where id = $1) and preset = $2
               and fingerprint = $3 and format = $4",
        )
        .bind(image)
        .bind(&rendition.preset)
        .bind(&rendition.fingerprint)
        .bind(rendition.format.as_str())
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

async fn write_placeholder(
    conn: &mut SqliteConnection,
    image: ImageId,
    placeholder: Option<&Placeholder>,
    now: i64,
) -> Result<(), StoreError> {
    let Some(placeholder) = placeholder else { return Ok(()) };
    sqlx::query(
        "insert into placeholders (sha256, thumbhash, dominant_color, created_at)
         select sha256, $2, $3, $4 from images where id = $1
         on conflict (sha256) do update
         set thumbhash = excluded.thumbhash, dominant_color = excluded.dominant_color",
    )
    .bind(image)
    .bind(&placeholder.thumbhash)
    .bind(placeholder.css_color())
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Puts a job that is queued again into the outbox, due when it may run.
async fn republish(conn: &mut SqliteConnection, job: JobId) -> Result<(), StoreError> {
    sqlx::query(
        "insert into outbox (job_id, kind, lane, share, generation, due_at)
         select id, kind, lane, share, fence, run_at from jobs where id = $1
         on conflict (job_id) do update
         set generation = excluded.generation, due_at = excluded.due_at",
    )
    .bind(job)
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn expired_leases(
    reads: &SqlitePool,
    now: i64,
    limit: u32,
) -> Result<Vec<ClaimedJob>, StoreError> {
    let rows = sqlx::query(concat!(
        "with expired as (
             select * from jobs where status = 'running' and lease_until <= $1
             order by lease_until, id limit $2)
         select",
        claimed_columns!(),
        image_columns!(),
        "from expired j join images i on i.id = j.image_id",
        backfill_joins!(),
        blob_joins!(),
        "order by j.lease_until, j.id, r.preset, r.fingerprint, r.format"
    ))
    .bind(now)
    .bind(limit)
    .fetch_all(reads)
    .await?;
    let job = |row: &SqliteRow| row.try_get::<JobId, _>("job_id").ok();
    let each = rows.chunk_by(|one, next| job(one) == job(next));
    Ok(readable(each.map(rows::claimed_jobs))?.concat())
}

pub async fn take_over(conn: &mut SqliteConnection, now: i64) -> Result<u64, StoreError> {
    sqlx::query(
        "delete from idempotency_keys where task_id is null;
         delete from workers",
    )
    .execute(&mut *conn)
    .await?;
    let expired = sqlx::query("update jobs set lease_until = $1 where status = 'running'")
        .bind(now)
        .execute(conn)
        .await?;
    Ok(expired.rows_affected())
}

pub async fn job_counts(reads: &SqlitePool, now: i64) -> Result<Vec<JobCount>, StoreError> {
    // One arm per partial index.
    let rows = sqlx::query(
        "select kind, lane, 'queued' as status, count(*) as jobs,
                count(*) filter (where run_at <= $1) as due,
                min(run_at) filter (where run_at <= $1) as due_since
         from jobs where status = 'queued' group by kind, lane
         union all
         select kind, lane, 'running', count(*), 0, null
         from jobs where status = 'running' group by kind, lane
         union all
         select kind, lane, 'failed', count(*), 0, null
         from jobs where status = 'failed' group by kind, lane",
    )
    .bind(now)
    .fetch_all(reads)
    .await?;
    readable(rows.iter().map(|row| {
        let due_since: Option<i64> = row.try_get("due_since")?;
        let waited = due_since.map_or(0, |since| now.saturating_sub(since));
        Ok(JobCount {
            kind: rows::name(row, "kind")?,
            lane: rows::name(row, "lane")?,
            status: rows::name(row, "status")?,
            count: from_sql(row.try_get::<i64, _>("jobs")?, "jobs")?,
            due: from_sql(row.try_get::<i64, _>("due")?, "due")?,
            oldest_due_seconds: Duration::from_micros(waited.try_into().unwrap_or(0)).as_secs_f64(),
        })
    }))
}
