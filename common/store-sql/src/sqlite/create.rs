//! Creating images and tasks: the one way to create work. Jobs that exist are queued again by `requeue.rs`, by
//! settles and by the outbox, all with `insert_notices!`.

use chrono::{DateTime, Utc};
use safelight_store::{KeyTicket, NewUpload, StoreError};
use sqlx::{SqliteConnection, types::Json};

use super::{dialect::time_of, notices::insert_notices};
use crate::new_task::{NewImage, NewTask};

/// Inserts images from the JSON parameter `$images`. Their columns are read by name.
macro_rules! insert_images {
    ($images:literal, $time:literal) => {
        concat!(
            "insert into images (id, sha256, bytes, format, title, tags, filename, owner, visibility,
                                 created_at, fresh)
             select unhex(value ->> 'id', '-'), unhex(value ->> 'sha256'), value ->> 'bytes',
                    value ->> 'format', value ->> 'title', value -> 'tags', value ->> 'filename',
                    value ->> 'owner', value ->> 'visibility', ",
            $time,
            ", 1 from json_each(",
            $images,
            ");"
        )
    };
}

/// Inserts tasks from the JSON parameter `$1` with their jobs and outbox rows; `$2` is the time. A task without
/// jobs that exists already stays as it is.
macro_rules! insert_tasks {
    () => {
        concat!(
            "insert into tasks (id, kind, lane, status, image_id, jobs_total, owner, backfill_id,
                                source, created_at, updated_at)
             select unhex(value ->> 'id', '-'), value ->> 'kind', value ->> 'lane', 'queued',
                    unhex(value ->> 'image', '-'), json_array_length(value, '$.jobs'),
                    coalesce(value ->> 'owner', (select owner from images
                                                 where id = unhex(value ->> 'image', '-'))),
                    unhex(value ->> 'backfill', '-'), value ->> 'source', $2, $2
             from json_each($1) where true
             on conflict (id) do nothing;

             insert into jobs (id, task_id, image_id, kind, lane, share, status, max_attempts,
                               traceparent, run_at, waiting_since, created_at, updated_at,
                               needs_version)
             select unhex(one.value ->> 0, '-'), t.id, t.image_id, one.value ->> 1, t.lane,
                    case when t.backfill_id is null then t.owner else lower(hex(t.backfill_id)) end,
                    'queued', new.value ->> 'max_attempts', new.value ->> 'trace', new.due_at,
                    new.due_at, $2, $2, one.value ->> 2
             from (select value,
                          max($2 + (value ->> 'after_us'),
                              case when value ->> 'after_leases' then (
                                  select coalesce(max(j.lease_until), 0)
                                  from jobs j join tasks o on o.id = j.task_id
                                  where o.image_id = unhex(value ->> 'image', '-'))
                              else 0 end) as due_at
                   from json_each($1)) new
             join tasks t on t.id = unhex(new.value ->> 'id', '-')
             join json_each(new.value, '$.jobs') one; ",
            insert_notices!(),
            "run_at from jobs
             where id in (select unhex(one.value ->> 0, '-')
                          from json_each($1) new join json_each(new.value, '$.jobs') one);"
        )
    };
}

/// Creates images.
pub async fn create_images(
    conn: &mut SqliteConnection,
    now: i64,
    images: &[NewImage<'_>],
) -> Result<(), StoreError> {
    if !images.is_empty() {
        let query = sqlx::query(insert_images!("$1", "$2"));
        query.bind(Json(images)).bind(now).execute(conn).await?;
    }
    Ok(())
}

/// Creates tasks with their jobs and the outbox rows of these.
pub async fn create_tasks(
    conn: &mut SqliteConnection,
    now: i64,
    tasks: &[NewTask<'_>],
) -> Result<(), StoreError> {
    if !tasks.is_empty() {
        sqlx::query(insert_tasks!()).bind(Json(tasks)).bind(now).execute(conn).await?;
    }
    Ok(())
}

/// Records an upload: one script, so that it crosses to SQLite's thread once. Its statements share their
/// parameters, which works with `$1`, not with `?1`: sqlx miscounts `?` parameters that a statement leaves out.
/// Without a key, the last statement finds no row. Returns the time of the upload; `None`, without any effect, if
/// its key was lost.
pub async fn insert_upload(
    conn: &mut SqliteConnection,
    now: i64,
    upload: &NewUpload,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    let key = upload.key.as_ref();
    if let Some((ticket, _)) = key
        && !holds_key(conn, ticket, upload).await?
    {
        return Ok(None);
    }
    let query = sqlx::query(concat!(
        insert_images!("$3", "$2"),
        insert_tasks!(),
        "update idempotency_keys set task_id = $4, fingerprint = $5 where owner = $6 and key = $7"
    ));
    query
        .bind(Json([NewTask::of_upload(upload)]))
        .bind(now)
        .bind(Json([NewImage::of_upload(upload)]))
        .bind(upload.task)
        .bind(key.map(|(_, fingerprint)| fingerprint.as_bytes()))
        .bind(key.map(|(ticket, _)| ticket.key.owner.storage_name()))
        .bind(key.map(|(ticket, _)| ticket.key.key.as_str()))
        .execute(conn)
        .await?;
    Ok(Some(time_of(now)?))
}

/// Whether the reservation is still this upload's.
async fn holds_key(
    conn: &mut SqliteConnection,
    ticket: &KeyTicket,
    upload: &NewUpload,
) -> Result<bool, StoreError> {
    let found = sqlx::query(
        "select 1 from idempotency_keys
         where owner = $1 and key = $2 and token = $3 and (task_id is null or task_id = $4)",
    )
    .bind(&ticket.key.owner)
    .bind(&ticket.key.key)
    .bind(ticket.token)
    .bind(upload.task)
    .fetch_optional(conn)
    .await?;
    Ok(found.is_some())
}
