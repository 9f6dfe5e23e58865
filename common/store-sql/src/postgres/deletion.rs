//! Deleting images for good.

use safelight_domain::{ContentHash, Image, ImageId, Receipt, Removal, TaskId};
use safelight_store::{Deletion, DeletionRequest, Reference, StoreError, deletions::plan};
use sqlx::{PgConnection, PgPool, Row, types::Json};

use super::{
    control, interval,
    rows::{self, blob_joins, image_columns, rendition},
};

/// Whoever adds a task to the image, or tries one again, waits here, or was waited for; a foreign key's
/// look at the row is enough.
const LOCK_IMAGE: &str = "select deleted_at is not null from images where id = $1 for update";

/// From here on the row tells nothing of the picture but the name of its blob, which the job needs.
const REDACT: &str = "
    with sources as (update tasks set source = null where image_id = $1 and source is not null)
    update images
    set discarded_at = coalesce(discarded_at, now()), deleted_at = now(), title = null, tags = '[]',
        filename = null, taken_at = null, latitude = null, longitude = null
    where id = $1";

/// The leases of jobs that were cancelled are not renewed any more: once they are over, nobody writes.
const QUEUE: &str = "
    with task as (
        insert into tasks (id, kind, lane, status, image_id, jobs_total, owner)
        select $2, 'delete', 'interactive', 'queued', $1, 1,
               (select owner from images where id = $1)
        returning id, image_id, lane, owner),
    deletion as (
        insert into deletions (task_id, image_id, receipt, removal)
        select id, image_id, $7, $8 from task),
    job as (
        insert into jobs (id, task_id, image_id, kind, lane, share, status, max_attempts, traceparent,
                          run_at, waiting_since)
        select $3, id, image_id, 'delete', lane, owner, 'queued', $4, $5, due.at, due.at
        from task, (select greatest(now() + $6, max(j.lease_until)) as at
                    from jobs j join tasks t on t.id = j.task_id where t.image_id = $1) due
        returning id, kind, lane, share, run_at)
    insert into outbox (job_id, kind, lane, share, generation, due_at)
    select id, kind, lane, share, 0, run_at from job";

pub async fn delete_image(
    pool: &PgPool,
    request: &DeletionRequest,
) -> Result<Deletion, StoreError> {
    let mut transaction = pool.begin().await?;
    // Before the image's row, as a settle takes them.
    control::cancel_all_of(&mut transaction, request.image).await?;
    let deleted: Option<bool> = sqlx::query_scalar(LOCK_IMAGE)
        .bind(request.image)
        .fetch_optional(&mut *transaction)
        .await?;
    match deleted {
        None => return Ok(Deletion::Unknown),
        Some(true) => return before(&mut transaction, request.image).await,
        Some(false) => {}
    }
    // What has come before the lock was had.
    control::cancel_all_of(&mut transaction, request.image).await?;
    let (receipt, _) = plan(&image(&mut transaction, request.image).await?, request);
    sqlx::query(REDACT).bind(request.image).execute(&mut *transaction).await?;
    // Now that it is discarded it shows all that is to go with it.
    let (_, removal) = plan(&image(&mut transaction, request.image).await?, request);
    sqlx::query(QUEUE)
        .bind(request.image)
        .bind(request.task)
        .bind(request.job)
        .bind(i32::try_from(request.max_attempts).unwrap_or(i32::MAX))
        .bind(request.trace.map(|trace| trace.to_string()))
        .bind(interval(request.after))
        .bind(Json(receipt))
        .bind(Json(removal))
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(Deletion::Accepted(request.task))
}

async fn before(conn: &mut PgConnection, image: ImageId) -> Result<Deletion, StoreError> {
    let task: Option<TaskId> =
        sqlx::query_scalar("select task_id from deletions where image_id = $1")
            .bind(image)
            .fetch_optional(conn)
            .await?;
    Ok(task.map_or(Deletion::Forgotten, Deletion::Before))
}

async fn image(conn: &mut PgConnection, id: ImageId) -> Result<Image, StoreError> {
    let rows = sqlx::query(concat!(
        "select",
        image_columns!(),
        "from images i",
        blob_joins!(),
        "where i.id = $1 order by r.preset, r.fingerprint, r.format"
    ))
    .bind(id)
    .fetch_all(conn)
    .await?;
    let image = rows::images(&rows)?.pop();
    image.ok_or_else(|| StoreError::Corrupt(format!("image {id} is gone under its lock")))
}

pub async fn removal(pool: &PgPool, task: TaskId) -> Result<Option<Removal>, StoreError> {
    let removal: Option<Json<Removal>> = sqlx::query_scalar(
        "select removal from deletions where task_id = $1 and removal is not null",
    )
    .bind(task)
    .fetch_optional(pool)
    .await?;
    Ok(removal.map(|Json(removal)| removal))
}

/// Those of `tasks` that are deletions, with their receipts.
pub async fn receipts(
    pool: &PgPool,
    tasks: &[TaskId],
) -> Result<Vec<(TaskId, Receipt)>, StoreError> {
    let rows =
        sqlx::query("select task_id, receipt, proxies from deletions where task_id = any($1)")
            .bind(tasks.iter().map(|id| id.0).collect::<Vec<_>>())
            .fetch_all(pool)
            .await?;
    let receipt = |row: &sqlx::postgres::PgRow| {
        let Json(receipt) = row.try_get::<Json<Receipt>, _>("receipt")?;
        let proxies: Option<i32> = row.try_get("proxies")?;
        let proxies = proxies.and_then(|count| count.try_into().ok());
        Ok((row.try_get("task_id")?, Receipt { proxies, ..receipt }))
    };
    rows.iter().map(receipt).collect()
}

pub async fn references(
    pool: &PgPool,
    hashes: &[ContentHash],
) -> Result<Vec<Reference>, StoreError> {
    let rows = sqlx::query(
        "select b.sha256, b.is_busy, r.preset, r.fingerprint, r.format as r_format,
                r.width as r_width, r.height as r_height, r.bytes as r_bytes, r.rendition_sha256,
                r.created_at as made_at
         from (select i.sha256, bool_or(exists (
                          select from tasks t join jobs j on j.task_id = t.id
                          where t.image_id = i.id and j.status in ('queued', 'running'))) as is_busy
               from images i where i.sha256 = any($1) and i.removed_at is null
               group by i.sha256) b
         left join renditions r on r.sha256 = b.sha256
         order by b.sha256",
    )
    .bind(hashes.iter().map(ContentHash::as_bytes).collect::<Vec<_>>())
    .fetch_all(pool)
    .await?;
    let mut references: Vec<Reference> = Vec::new();
    for row in &rows {
        let sha256 = rows::hash(row, "sha256")?;
        if references.last().is_none_or(|last| last.sha256 != sha256) {
            let is_busy = row.try_get("is_busy")?;
            references.push(Reference { sha256, renditions: Vec::new(), is_busy });
        }
        if let (Some(last), Some(made)) = (references.last_mut(), rendition(row)?) {
            last.renditions.push(made);
        }
    }
    Ok(references)
}
