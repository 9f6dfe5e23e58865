//! What people do to tasks by hand, and what is left to remove afterwards.

use std::{collections::HashMap, time::Duration};

use safelight_domain::{ContentHash, Image, ImageId, JobId, TaskId};
use safelight_store::StoreError;
use sqlx::{Row, SqliteConnection, SqliteExecutor, SqlitePool, types::Json};

use super::{
    backfill,
    rows::{self, blob_joins, image_columns},
    writer::Writer,
};
use crate::convert::micros;

pub async fn cancel(conn: &mut SqliteConnection, now: i64, id: TaskId) -> Result<bool, StoreError> {
    if let Some((cancelled, open)) = backfill::cancel(conn, now, id).await? {
        cancel_each(conn, now, &open).await?;
        return Ok(cancelled);
    }
    cancel_each(conn, now, &[id]).await
}

/// Cancels tasks, and discards the images of uploads among them. `false` if nothing of them was open.
async fn cancel_each(
    conn: &mut SqliteConnection,
    now: i64,
    ids: &[TaskId],
) -> Result<bool, StoreError> {
    let cancelled = cancel_jobs(conn, now, ids).await?;
    if cancelled.is_empty() {
        return Ok(false);
    }
    let discarded: Vec<ImageId> = sqlx::query_scalar(
        "update images set discarded_at = $2
         where id in (select image_id from tasks
                      where id in (select unhex(value) from json_each($1)) and kind = 'upload')
           and discarded_at is null
         returning id",
    )
    .bind(rows::id_list(cancelled.iter().map(|id| id.0)))
    .bind(now)
    .fetch_all(&mut *conn)
    .await?;
    if !discarded.is_empty() {
        let others: Vec<TaskId> = sqlx::query_scalar(
            "select id from tasks
             where image_id in (select unhex(value) from json_each($1))
               and id not in (select unhex(value) from json_each($2))",
        )
        .bind(rows::id_list(discarded.iter().map(|id| id.0)))
        .bind(rows::id_list(ids.iter().map(|id| id.0)))
        .fetch_all(&mut *conn)
        .await?;
        cancel_jobs(conn, now, &others).await?;
    }
    Ok(true)
}

/// Cancels what is open of an image's tasks.
pub async fn cancel_all_of(
    conn: &mut SqliteConnection,
    now: i64,
    image: ImageId,
) -> Result<(), StoreError> {
    let tasks: Vec<TaskId> = sqlx::query_scalar("select id from tasks where image_id = $1")
        .bind(image)
        .fetch_all(&mut *conn)
        .await?;
    cancel_jobs(conn, now, &tasks).await?;
    Ok(())
}

/// Cancels what is open of tasks; answers which had anything open. What is being deleted stays so.
async fn cancel_jobs(
    conn: &mut SqliteConnection,
    now: i64,
    ids: &[TaskId],
) -> Result<Vec<TaskId>, StoreError> {
    let of_jobs: Vec<TaskId> = sqlx::query_scalar(
        "update jobs set status = 'cancelled', updated_at = $2
         where task_id in (select unhex(value) from json_each($1))
           and status in ('queued', 'running') and kind <> 'delete' returning task_id",
    )
    .bind(rows::id_list(ids.iter().map(|id| id.0)))
    .bind(now)
    .fetch_all(&mut *conn)
    .await?;
    let mut counts = HashMap::<TaskId, u32>::new();
    for task in of_jobs {
        *counts.entry(task).or_default() += 1;
    }
    let list: Vec<_> = counts.iter().map(|(id, jobs)| (id.0.simple().to_string(), jobs)).collect();
    sqlx::query(
        "delete from outbox where job_id in (
             select id from jobs
             where task_id in (select unhex(value ->> 0) from json_each($1)));

         update tasks
         set jobs_cancelled = jobs_cancelled + jobs, version = version + 1, updated_at = $2,
             finished_at = $2, status = 'cancelled'
         from (select unhex(value ->> 0) as cancelled, value ->> 1 as jobs from json_each($1))
         where id = cancelled",
    )
    .bind(Json(list))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(counts.into_keys().collect())
}

pub async fn retry(
    conn: &mut SqliteConnection,
    now: i64,
    ids: Vec<TaskId>,
) -> Result<Vec<TaskId>, StoreError> {
    let mut retried = backfill::reopen(conn, now, &ids).await?;
    backfill::uncount(conn, now, &ids).await?;
    let tasks: Vec<TaskId> = sqlx::query_scalar(
        "select t.id from tasks t left join images i on i.id = t.image_id
         where t.id in (select unhex(value) from json_each($1)) and t.status = 'failed'
           and (i.discarded_at is null or t.kind = 'delete')
           and exists (select 1 from jobs j where j.task_id = t.id and j.status = 'failed')",
    )
    .bind(rows::id_list(ids.iter().map(|id| id.0)))
    .fetch_all(&mut *conn)
    .await?;
    let list = rows::id_list(tasks.iter().map(|id| id.0));
    // The fence goes on growing; the attempts begin anew because all earlier ones count as handed
    // back.
    let jobs = sqlx::query(
        "update jobs
         set status = 'queued', released = fence, run_at = $2, waiting_since = $2,
             error_code = null, error_message = null, updated_at = $2
         where task_id in (select unhex(value) from json_each($1)) and status = 'failed'
         returning id",
    )
    .bind(list.clone())
    .bind(now)
    .fetch_all(&mut *conn)
    .await?;
    let jobs = jobs.iter().map(|row| row.try_get("id")).collect::<Result<Vec<JobId>, _>>()?;
    sqlx::query(
        "insert into outbox (job_id, kind, lane, share, generation, due_at)
         select id, kind, lane, share, fence, run_at from jobs
         where id in (select unhex(value) from json_each($3))
         on conflict (job_id) do update
         set generation = excluded.generation, due_at = excluded.due_at;

         update tasks
         set jobs_failed = 0, status = 'queued', finished_at = null, version = version + 1,
             updated_at = $2
         where id in (select unhex(value) from json_each($1))",
    )
    .bind(list)
    .bind(now)
    .bind(rows::id_list(jobs.iter().map(|id| id.0)))
    .execute(conn)
    .await?;
    retried.extend(tasks);
    Ok(retried)
}

/// Tries up to `limit` failed children of a backfill again; if there are none, that is over.
pub async fn retry_children(
    reads: &SqlitePool,
    writer: &Writer,
    backfill: TaskId,
    limit: u32,
) -> Result<u64, StoreError> {
    let failed = backfill::failed_children(reads, backfill, limit).await?;
    writer
        .run(move |conn, now| {
            Box::pin(async move {
                if failed.is_empty() {
                    backfill::retried(conn, backfill).await?;
                    return Ok(0);
                }
                Ok(retry(conn, now, failed).await?.len() as u64)
            })
        })
        .await
}

pub async fn discarded(
    reads: &SqlitePool,
    now: i64,
    limit: u32,
    age: Duration,
) -> Result<Vec<Image>, StoreError> {
    let rows = sqlx::query(concat!(
        "with page as (
             select * from images i
             where discarded_at <= $3 and removed_at is null and deleted_at is null
               and not exists (select 1 from jobs j join tasks t on t.id = j.task_id
                               where t.image_id = i.id and j.lease_until > $1)
             order by discarded_at limit $2)
         select",
        image_columns!(),
        "from page i",
        blob_joins!(),
        "order by i.discarded_at, i.id, r.preset, r.fingerprint, r.format"
    ))
    .bind(now)
    .bind(limit)
    .bind(now.saturating_sub(micros(age)))
    .fetch_all(reads)
    .await?;
    rows::images(&rows)
}

pub async fn is_blob_wanted(
    reads: impl SqliteExecutor<'_>,
    sha256: &ContentHash,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "select exists (select 1 from images where sha256 = $1 and discarded_at is null)",
    )
    .bind(sha256.as_bytes())
    .fetch_one(reads)
    .await?)
}

pub async fn forget_blob(
    conn: &mut SqliteConnection,
    sha256: ContentHash,
) -> Result<bool, StoreError> {
    let wanted = is_blob_wanted(&mut *conn, &sha256).await?;
    if !wanted {
        sqlx::query(
            "delete from renditions where sha256 = $1;
             delete from placeholders where sha256 = $1",
        )
        .bind(sha256.as_bytes())
        .execute(conn)
        .await?;
    }
    Ok(!wanted)
}

pub async fn mark_removed(
    conn: &mut SqliteConnection,
    now: i64,
    id: ImageId,
) -> Result<(), StoreError> {
    sqlx::query("update images set removed_at = $2 where id = $1 and discarded_at is not null")
        .bind(id)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}
