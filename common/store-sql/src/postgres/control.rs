//! What people do to tasks by hand, and what is left to remove afterwards.

use std::time::Duration;

use safelight_domain::{ContentHash, Image, ImageId, TaskId};
use safelight_store::StoreError;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{
    backfill, interval,
    rows::{self, blob_joins, image_columns},
};

/// The jobs are locked before their task and in one order, as everywhere. Whoever settles one of
/// them meanwhile comes first: it is no longer open then, and the counters show it. What is being deleted
/// stays so.
const CANCEL: &str = "
    with open as (
        select id from jobs
        where task_id = any($1) and status in ('queued', 'running') and kind <> 'delete'
        order by id for update),
    job as (
        update jobs j set status = 'cancelled', updated_at = now()
        from open where j.id = open.id and j.status in ('queued', 'running')
        returning j.id, j.task_id),
    bell as (delete from outbox o using job where o.job_id = job.id),
    counted as (select task_id, count(*)::int as jobs from job group by task_id),
    task as (
        update tasks t
        set jobs_cancelled = jobs_cancelled + counted.jobs,
            version = version + 1, updated_at = now(),
            status = case
                when jobs_succeeded + jobs_failed + jobs_cancelled + counted.jobs < jobs_total
                     then status
                else 'cancelled' end,
            finished_at = case
                when jobs_succeeded + jobs_failed + jobs_cancelled + counted.jobs < jobs_total
                     then finished_at
                else now() end
        from counted where t.id = counted.task_id)
    select task_id from counted";

pub async fn cancel(pool: &PgPool, id: TaskId) -> Result<bool, StoreError> {
    let mut transaction = pool.begin().await?;
    let cancelled = match backfill::cancel(&mut transaction, id).await? {
        Some((cancelled, open)) => {
            cancel_each(&mut transaction, &open).await?;
            cancelled
        }
        None => cancel_each(&mut transaction, &[id]).await?,
    };
    transaction.commit().await?;
    Ok(cancelled)
}

/// Cancels tasks, and discards the images of uploads among them. `false` if nothing of them was open.
async fn cancel_each(conn: &mut PgConnection, ids: &[TaskId]) -> Result<bool, StoreError> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let cancelled: Vec<Uuid> = sqlx::query_scalar(CANCEL).bind(&ids).fetch_all(&mut *conn).await?;
    if cancelled.is_empty() {
        return Ok(false);
    }
    let discarded: Vec<Uuid> = sqlx::query_scalar(
        "update images i set discarded_at = now() from tasks t
         where t.id = any($1) and t.kind = 'upload' and i.id = t.image_id and i.discarded_at is null
         returning i.id",
    )
    .bind(&cancelled)
    .fetch_all(&mut *conn)
    .await?;
    if !discarded.is_empty() {
        // From now on nobody asks for their renditions; whoever did holding the image's row is seen.
        let others: Vec<Uuid> =
            sqlx::query_scalar("select id from tasks where image_id = any($1) and id <> all($2)")
                .bind(discarded)
                .bind(ids)
                .fetch_all(&mut *conn)
                .await?;
        sqlx::query(CANCEL).bind(others).execute(&mut *conn).await?;
    }
    Ok(true)
}

/// Cancels what is open of an image's tasks.
pub async fn cancel_all_of(conn: &mut PgConnection, image: ImageId) -> Result<(), StoreError> {
    let tasks: Vec<Uuid> = sqlx::query_scalar("select id from tasks where image_id = $1")
        .bind(image)
        .fetch_all(&mut *conn)
        .await?;
    sqlx::query(CANCEL).bind(tasks).execute(&mut *conn).await?;
    Ok(())
}

/// The fence goes on growing; the attempts begin anew because all earlier ones count as handed back.
const RETRY: &str = "
    with job as (
        update jobs j
        set status = 'queued', released = j.fence, run_at = now(), waiting_since = now(),
            error_code = null, error_message = null, updated_at = now()
        from tasks t left join images i on i.id = t.image_id
        where t.id = any($1) and t.status = 'failed'
          and (i.discarded_at is null or t.kind = 'delete')
          and j.task_id = t.id and j.status = 'failed'
        returning j.id, j.task_id, j.kind, j.lane, j.share, j.fence),
    bell as (
        insert into outbox (job_id, kind, lane, share, generation)
        select id, kind, lane, share, fence from job
        on conflict (job_id) do update
        set generation = excluded.generation, due_at = excluded.due_at),
    counted as (select task_id, count(*)::int as jobs from job group by task_id)
    update tasks t
    set jobs_failed = jobs_failed - counted.jobs, status = 'queued', finished_at = null,
        version = version + 1, updated_at = now()
    from counted where t.id = counted.task_id
    returning t.id";

pub async fn retry(pool: &PgPool, ids: &[TaskId]) -> Result<Vec<TaskId>, StoreError> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let mut transaction = pool.begin().await?;
    // Whoever deletes one of the images meanwhile waits, and then cancels what is queued here.
    sqlx::query(
        "select 1 from images where id in (select image_id from tasks where id = any($1))
         order by id for key share",
    )
    .bind(&ids)
    .execute(&mut *transaction)
    .await?;
    let mut retried = backfill::reopen(&mut transaction, &ids).await?;
    backfill::uncount(&mut transaction, &ids).await?;
    let others: Vec<TaskId> =
        sqlx::query_scalar(RETRY).bind(ids).fetch_all(&mut *transaction).await?;
    transaction.commit().await?;
    retried.extend(others);
    Ok(retried)
}

/// Tries up to `limit` failed children of a backfill again; if there are none, that is over.
pub async fn retry_children(
    pool: &PgPool,
    backfill: TaskId,
    limit: u32,
) -> Result<u64, StoreError> {
    let failed = backfill::failed_children(pool, backfill, limit).await?;
    if failed.is_empty() {
        backfill::retried(pool, backfill).await?;
        return Ok(0);
    }
    Ok(retry(pool, &failed).await?.len() as u64)
}

pub async fn discarded(pool: &PgPool, limit: u32, age: Duration) -> Result<Vec<Image>, StoreError> {
    let rows = sqlx::query(concat!(
        "with page as (
             select * from images i
             where discarded_at <= now() - $2 and removed_at is null and deleted_at is null
               and not exists (select from jobs j join tasks t on t.id = j.task_id
                               where t.image_id = i.id and j.lease_until > now())
             order by discarded_at limit $1)
         select",
        image_columns!(),
        "from page i",
        blob_joins!(),
        "order by i.discarded_at, i.id, r.preset, r.fingerprint, r.format"
    ))
    .bind(i64::from(limit))
    .bind(interval(age))
    .fetch_all(pool)
    .await?;
    rows::images(&rows)
}

pub async fn is_blob_wanted(pool: &PgPool, sha256: &ContentHash) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "select exists (select from images where sha256 = $1 and discarded_at is null)",
    )
    .bind(sha256.as_bytes())
    .fetch_one(pool)
    .await?)
}

pub async fn forget_blob(pool: &PgPool, sha256: &ContentHash) -> Result<bool, StoreError> {
    let wanted: bool = sqlx::query_scalar(
        "with wanted as (
             select exists (select from images where sha256 = $1 and discarded_at is null) as yes),
         forgotten as (
             delete from renditions using wanted where sha256 = $1 and not wanted.yes),
         placeholder as (
             delete from placeholders using wanted where sha256 = $1 and not wanted.yes)
         select yes from wanted",
    )
    .bind(sha256.as_bytes())
    .fetch_one(pool)
    .await?;
    Ok(!wanted)
}

pub async fn mark_removed(pool: &PgPool, id: ImageId) -> Result<(), StoreError> {
    sqlx::query("update images set removed_at = now() where id = $1 and discarded_at is not null")
        .bind(id)
        .execute(pool)
        .await?;
    Ok(())
}
