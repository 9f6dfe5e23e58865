//! Creating images and tasks: the one way to create work. Jobs that exist are queued again by `requeue.rs`, by
//! settles and by the outbox, all with `insert_notices!`.

use chrono::{DateTime, Utc};
use safelight_store::{NewUpload, StoreError};
use sqlx::{PgConnection, types::Json};

use super::{dialect::Now, notices::insert_notices};
use crate::new_task::{NewImage, NewTask};

/// Inserts images from the JSON parameter `$images` if `$condition` holds.
macro_rules! insert_images {
    ($images:literal, $condition:literal) => {
        concat!(
            "insert into images (id, sha256, bytes, format, title, tags, filename, owner, visibility,
                                 fresh)
             select id, decode(sha256, 'hex'), bytes, format, title, tags, filename, owner,
                    visibility, true
             from jsonb_to_recordset(",
            $images,
            ") as new (id uuid, sha256 text, bytes bigint, format text, title text, tags jsonb,
                       filename text, owner text, visibility text)
             where ",
            $condition
        )
    };
}

/// Common table expressions that insert tasks from the JSON parameter `$tasks` with their jobs and outbox rows,
/// if `$condition` holds. A task that exists already stays as it is.
macro_rules! insert_tasks {
    ($tasks:literal, $condition:literal) => {
        concat!(
            "new_task as (
                 select new.*, coalesce(new.owner, (select owner from images where id = new.image))
                               as its_owner,
                        greatest(now() + new.after_us * interval '1 microsecond',
                                 case when new.after_leases then (
                                     select max(j.lease_until)
                                     from jobs j join tasks t on t.id = j.task_id
                                     where t.image_id = new.image) end) as due_at
                 from jsonb_to_recordset(",
            $tasks,
            ") as new (id uuid, kind text, lane text, owner text, image uuid, backfill uuid,
                       source text, jobs jsonb, max_attempts int, trace text, after_us bigint,
                       after_leases boolean)
                 where ",
            $condition,
            "),
             task as (
                 insert into tasks (id, kind, lane, status, image_id, jobs_total, owner, backfill_id,
                                    source)
                 select id, kind, lane, 'queued', image, jsonb_array_length(jobs), its_owner,
                        backfill, source
                 from new_task
                 on conflict (id) do nothing
                 returning id),
             job as (
                 insert into jobs (id, task_id, image_id, kind, lane, share, status, max_attempts,
                                   traceparent, run_at, waiting_since, needs_version)
                 select (one ->> 0)::uuid, new.id, new.image, one ->> 1, new.lane,
                        coalesce(new.backfill::text, new.its_owner), 'queued', new.max_attempts,
                        new.trace, new.due_at, new.due_at,
                        (one ->> 2)::int
                 from new_task new join task on task.id = new.id
                 cross join jsonb_array_elements(new.jobs) as one
                 returning id, kind, lane, share, fence, run_at),
             notice as (",
            insert_notices!(),
            "run_at from job)"
        )
    };
}

/// Creates images.
pub async fn create_images(
    conn: &mut PgConnection,
    _: Now,
    images: &[NewImage<'_>],
) -> Result<(), StoreError> {
    if !images.is_empty() {
        sqlx::query(insert_images!("$1", "true")).bind(Json(images)).execute(conn).await?;
    }
    Ok(())
}

/// Creates tasks with their jobs and the outbox rows of these.
pub async fn create_tasks(
    conn: &mut PgConnection,
    _: Now,
    tasks: &[NewTask<'_>],
) -> Result<(), StoreError> {
    if !tasks.is_empty() {
        sqlx::query(concat!("with ", insert_tasks!("$1", "true"), " select 1"))
            .bind(Json(tasks))
            .execute(conn)
            .await?;
    }
    Ok(())
}

/// Records an upload: one statement, one round trip, one commit. Without a key `$3` is null and `keyed` is
/// empty. Returns the time of the upload; `None`, without any effect, if its key was lost.
pub async fn insert_upload(
    conn: &mut PgConnection,
    _: Now,
    upload: &NewUpload,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    let key = upload.key.as_ref();
    let query = sqlx::query_scalar(concat!(
        "with keyed as (
             update idempotency_keys set task_id = $7, fingerprint = $6
             where owner = $3 and key = $4 and token = $5 and (task_id is null or task_id = $7)
             returning 1),
         image as (",
        insert_images!("$2", "$3::text is null or exists (select from keyed)"),
        " returning id, created_at), ",
        insert_tasks!("$1", "exists (select from image)"),
        " select created_at from image"
    ));
    let accepted = query
        .bind(Json([NewTask::of_upload(upload)]))
        .bind(Json([NewImage::of_upload(upload)]))
        .bind(key.map(|(ticket, _)| ticket.key.owner.storage_name()))
        .bind(key.map(|(ticket, _)| ticket.key.key.as_str()))
        .bind(key.map(|(ticket, _)| ticket.token))
        .bind(key.map(|(_, fingerprint)| fingerprint.as_bytes()))
        .bind(upload.task)
        .fetch_optional(conn)
        .await?;
    Ok(accepted)
}
