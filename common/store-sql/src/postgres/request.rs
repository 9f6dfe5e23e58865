//! Asking for renditions that an image lacks.

use safelight_store::{
    RenditionRequest, Requested, StoreError,
    requested::{LastJob, answer},
};
use sqlx::{PgPool, Row, postgres::PgRow};

use super::{interval, rows};

/// Whoever asks for the same image waits here, and sees in the next statement what the first has
/// queued. An image that was discarded meanwhile is none.
const LOCK_IMAGE: &str =
    "select 1 from images where id = $1 and discarded_at is null for no key update";

const LAST_JOB: &str = "
    select t.id, t.kind, j.status, coalesce(t.finished_at > now() - $2, false) as is_recent
    from tasks t join jobs j on j.task_id = t.id
    where t.image_id = $1 and j.kind = 'thumbnail'
      and not (j.lane = 'bulk' and j.status in ('queued', 'running'))
    order by j.status in ('queued', 'running') desc, j.id desc limit 1";

const QUEUE: &str = "
    with task as (
        insert into tasks (id, kind, lane, status, image_id, jobs_total, owner)
        select $2, 'rendition', 'interactive', 'queued', $1, 1,
               (select owner from images where id = $1)
        returning id, image_id, lane, owner),
    job as (
        insert into jobs (id, task_id, image_id, kind, lane, share, status, max_attempts,
                          traceparent, needs_version)
        select $3, id, image_id, 'thumbnail', lane, owner, 'queued', $4, $5, 2 from task
        returning id, kind, lane, share)
    insert into outbox (job_id, kind, lane, share, generation)
    select id, kind, lane, share, 0 from job";

pub async fn request_rendition(
    pool: &PgPool,
    request: &RenditionRequest,
) -> Result<Requested, StoreError> {
    let mut transaction = pool.begin().await?;
    let image =
        sqlx::query(LOCK_IMAGE).bind(request.image).fetch_optional(&mut *transaction).await?;
    if image.is_none() {
        return Ok(Requested::Gone);
    }
    let row = sqlx::query(LAST_JOB)
        .bind(request.image)
        .bind(interval(request.again_after))
        .fetch_optional(&mut *transaction)
        .await?;
    let last = row.as_ref().map(last_job).transpose()?;
    if let Some(answer) = answer(last.as_ref(), request) {
        return Ok(answer);
    }
    sqlx::query(QUEUE)
        .bind(request.image)
        .bind(request.task)
        .bind(request.job)
        .bind(i32::try_from(request.max_attempts).unwrap_or(i32::MAX))
        .bind(request.trace.map(|trace| trace.to_string()))
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(Requested::Queued(request.task))
}

fn last_job(row: &PgRow) -> Result<LastJob, StoreError> {
    Ok(LastJob {
        task: row.try_get("id")?,
        kind: rows::name(row, "kind")?,
        status: rows::name(row, "status")?,
        is_recent: row.try_get("is_recent")?,
    })
}
