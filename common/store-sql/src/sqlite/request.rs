//! Asking for renditions that an image lacks. There is one writer, so requests come one by one.

use safelight_store::{
    RenditionRequest, Requested, StoreError,
    requested::{LastJob, answer},
};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::rows;
use crate::convert::micros;

const LAST_JOB: &str = "
    select t.id, t.kind, j.status, coalesce(t.finished_at > $2, false) as is_recent
    from tasks t join jobs j on j.task_id = t.id
    where t.image_id = $1 and j.kind = 'thumbnail'
      and not (j.lane = 'bulk' and j.status in ('queued', 'running'))
    order by j.status in ('queued', 'running') desc, j.id desc limit 1";

const QUEUE: &str = "
    insert into tasks (id, kind, lane, status, image_id, jobs_total, owner, created_at, updated_at)
    values ($2, 'rendition', 'interactive', 'queued', $1, 1,
            (select owner from images where id = $1), $5, $5);

    insert into jobs (id, task_id, image_id, kind, lane, share, status, max_attempts, run_at,
                      waiting_since, created_at, updated_at, traceparent,
                      needs_version)
    select $3, id, image_id, 'thumbnail', lane, owner, 'queued', $4, $5, $5, $5, $5, $6, 2
    from tasks where id = $2;

    insert into outbox (job_id, kind, lane, share, generation, due_at)
    select id, kind, lane, share, 0, run_at from jobs where id = $3;";

pub async fn request_rendition(
    conn: &mut SqliteConnection,
    now: i64,
    request: RenditionRequest,
) -> Result<Requested, StoreError> {
    let image = sqlx::query("select 1 from images where id = $1 and discarded_at is null")
        .bind(request.image)
        .fetch_optional(&mut *conn)
        .await?;
    if image.is_none() {
        return Ok(Requested::Gone);
    }
    let row = sqlx::query(LAST_JOB)
        .bind(request.image)
        .bind(now.saturating_sub(micros(request.again_after)))
        .fetch_optional(&mut *conn)
        .await?;
    let last = row.as_ref().map(last_job).transpose()?;
    if let Some(answer) = answer(last.as_ref(), &request) {
        return Ok(answer);
    }
    sqlx::query(QUEUE)
        .bind(request.image)
        .bind(request.task)
        .bind(request.job)
        .bind(request.max_attempts)
        .bind(now)
        .bind(request.trace.map(|trace| trace.to_string()))
        .execute(conn)
        .await?;
    Ok(Requested::Queued(request.task))
}

fn last_job(row: &SqliteRow) -> Result<LastJob, StoreError> {
    Ok(LastJob {
        task: row.try_get("id")?,
        kind: rows::name(row, "kind")?,
        status: rows::name(row, "status")?,
        is_recent: row.try_get("is_recent")?,
    })
}
