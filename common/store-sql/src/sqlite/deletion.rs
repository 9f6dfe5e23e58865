//! Deleting images for good. There is one writer, so nothing comes between.

use safelight_domain::{ContentHash, Image, ImageId, Receipt, Removal, TaskId};
use safelight_store::{Deletion, DeletionRequest, Reference, StoreError, deletions::plan};
use sqlx::{Row, SqliteConnection, SqlitePool, types::Json};

use super::{
    control,
    rows::{self, blob_joins, image_columns, rendition},
};
use crate::convert::micros;

/// From here on the row tells nothing of the picture but the name of its blob, which the job needs.
const REDACT: &str = "
    update tasks set source = null where image_id = $1 and source is not null;

    update images
    set discarded_at = coalesce(discarded_at, $2), deleted_at = $2, title = null, tags = '[]',
        filename = null, taken_at = null, latitude = null, longitude = null
    where id = $1;";

/// The leases of jobs that were cancelled are not renewed any more: once they are over, nobody writes.
const QUEUE: &str = "
    insert into tasks (id, kind, lane, status, image_id, jobs_total, owner, created_at, updated_at)
    values ($2, 'delete', 'interactive', 'queued', $1, 1,
            (select owner from images where id = $1), $6, $6);

    insert into deletions (task_id, image_id, receipt, removal) values ($2, $1, $8, $9);

    insert into jobs (id, task_id, image_id, kind, lane, share, status, max_attempts, run_at,
                      waiting_since, created_at, updated_at, traceparent)
    select $3, id, image_id, 'delete', lane, owner, 'queued', $4, due, due, $6, $6, $5
    from tasks, (select max($7, coalesce(max(j.lease_until), 0)) as due
                 from jobs j join tasks t on t.id = j.task_id where t.image_id = $1)
    where id = $2;

    insert into outbox (job_id, kind, lane, share, generation, due_at)
    select id, kind, lane, share, 0, run_at from jobs where id = $3;";

pub async fn delete_image(
    conn: &mut SqliteConnection,
    now: i64,
    request: DeletionRequest,
) -> Result<Deletion, StoreError> {
    let deleted: Option<bool> =
        sqlx::query_scalar("select deleted_at is not null from images where id = $1")
            .bind(request.image)
            .fetch_optional(&mut *conn)
            .await?;
    match deleted {
        None => return Ok(Deletion::Unknown),
        Some(true) => return before(conn, request.image).await,
        Some(false) => {}
    }
    control::cancel_all_of(conn, now, request.image).await?;
    let (receipt, _) = plan(&image(conn, request.image).await?, &request);
    sqlx::query(REDACT).bind(request.image).bind(now).execute(&mut *conn).await?;
    // Now that it is discarded it shows all that is to go with it.
    let (_, removal) = plan(&image(conn, request.image).await?, &request);
    sqlx::query(QUEUE)
        .bind(request.image)
        .bind(request.task)
        .bind(request.job)
        .bind(request.max_attempts)
        .bind(request.trace.map(|trace| trace.to_string()))
        .bind(now)
        .bind(now + micros(request.after))
        .bind(Json(receipt))
        .bind(Json(removal))
        .execute(conn)
        .await?;
    Ok(Deletion::Accepted(request.task))
}

async fn before(conn: &mut SqliteConnection, image: ImageId) -> Result<Deletion, StoreError> {
    let task: Option<TaskId> =
        sqlx::query_scalar("select task_id from deletions where image_id = $1")
            .bind(image)
            .fetch_optional(conn)
            .await?;
    Ok(task.map_or(Deletion::Forgotten, Deletion::Before))
}

async fn image(conn: &mut SqliteConnection, id: ImageId) -> Result<Image, StoreError> {
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
    image.ok_or_else(|| StoreError::Corrupt(format!("image {id} is gone within a transaction")))
}

pub async fn removal(reads: &SqlitePool, task: TaskId) -> Result<Option<Removal>, StoreError> {
    let removal: Option<Json<Removal>> = sqlx::query_scalar(
        "select removal from deletions where task_id = $1 and removal is not null",
    )
    .bind(task)
    .fetch_optional(reads)
    .await?;
    Ok(removal.map(|Json(removal)| removal))
}

/// Those of `tasks` that are deletions, with their receipts.
pub async fn receipts(
    reads: &SqlitePool,
    tasks: &[TaskId],
) -> Result<Vec<(TaskId, Receipt)>, StoreError> {
    let rows = sqlx::query(
        "select task_id, receipt, proxies from deletions
         where task_id in (select unhex(value) from json_each($1))",
    )
    .bind(rows::id_list(tasks.iter().map(|id| id.0)))
    .fetch_all(reads)
    .await?;
    let receipt = |row: &sqlx::sqlite::SqliteRow| {
        let Json(receipt) = row.try_get::<Json<Receipt>, _>("receipt")?;
        Ok((row.try_get("task_id")?, Receipt { proxies: row.try_get("proxies")?, ..receipt }))
    };
    rows.iter().map(receipt).collect()
}

/// The end of a deletion: nothing is left of the picture, not even the hash of its bytes.
pub async fn finish(
    conn: &mut SqliteConnection,
    now: i64,
    image: ImageId,
    proxies: u32,
) -> Result<(), StoreError> {
    sqlx::query(
        "update images set sha256 = zeroblob(32), removed_at = $2 where id = $1;

         update deletions set proxies = $3, removal = null where image_id = $1;",
    )
    .bind(image)
    .bind(now)
    .bind(proxies)
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn references(
    reads: &SqlitePool,
    hashes: &[ContentHash],
) -> Result<Vec<Reference>, StoreError> {
    let hashes: Vec<String> = hashes.iter().map(ToString::to_string).collect();
    let rows = sqlx::query(
        "select b.sha256, b.is_busy, r.preset, r.fingerprint, r.format as r_format,
                r.width as r_width, r.height as r_height, r.bytes as r_bytes, r.rendition_sha256,
                r.created_at as made_at
         from (select i.sha256, max(exists (
                          select 1 from tasks t join jobs j on j.task_id = t.id
                          where t.image_id = i.id and j.status in ('queued', 'running'))) as is_busy
               from images i
               where i.sha256 in (select unhex(value) from json_each($1)) and i.removed_at is null
               group by i.sha256) b
         left join renditions r on r.sha256 = b.sha256
         order by b.sha256",
    )
    .bind(Json(hashes))
    .fetch_all(reads)
    .await?;
    let mut references: Vec<Reference> = Vec::new();
    for row in &rows {
        let sha256 = rows::hash(row, "sha256")?;
        if references.last().is_none_or(|last| last.sha256 != sha256) {
            let is_busy = row.try_get::<i64, _>("is_busy")? != 0;
            references.push(Reference { sha256, renditions: Vec::new(), is_busy });
        }
        if let (Some(last), Some(made)) = (references.last_mut(), rendition(row)?) {
            last.renditions.push(made);
        }
    }
    Ok(references)
}
