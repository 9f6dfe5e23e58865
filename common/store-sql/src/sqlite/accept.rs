//! Accepting uploads: idempotency keys, and the one transaction of an upload.

use std::time::Duration;

use safelight_domain::{ContentHash, JobKind};
use safelight_store::{Accepted, IdempotencyKey, KeyState, KeyTicket, NewUpload, StoreError};
use sqlx::{Row, SqliteConnection, SqlitePool, types::Json};
use uuid::Uuid;

use super::{access, rows, writer::Writer};
use crate::convert::{micros, to_i64};

pub async fn reserve_key(
    conn: &mut SqliteConnection,
    now: i64,
    key: IdempotencyKey,
    hold: Duration,
) -> Result<KeyState, StoreError> {
    let token = Uuid::new_v4();
    let reserved = sqlx::query(
        "insert into idempotency_keys (owner, key, token, held_until, created_at)
         values ($1, $2, $3, $4 + $5, $4)
         on conflict (owner, key) do update
         set token = excluded.token, held_until = excluded.held_until,
             created_at = excluded.created_at
         where idempotency_keys.task_id is null and idempotency_keys.held_until <= $4",
    )
    .bind(&key.owner)
    .bind(&key.key)
    .bind(token)
    .bind(now)
    .bind(micros(hold))
    .execute(&mut *conn)
    .await?
    .rows_affected();
    if reserved == 1 {
        return Ok(KeyState::Reserved(KeyTicket { key, token }));
    }
    let row = sqlx::query(
        "select task_id, fingerprint from idempotency_keys where owner = $1 and key = $2",
    )
    .bind(&key.owner)
    .bind(&key.key)
    .fetch_one(conn)
    .await?;
    let Some(task) = row.try_get("task_id")? else { return Ok(KeyState::InFlight) };
    let fingerprint = ContentHash::try_from(row.try_get::<&[u8], _>("fingerprint")?)
        .map_err(|error| StoreError::Corrupt(format!("fingerprint: {error}")))?;
    Ok(KeyState::Used { task, fingerprint })
}

pub async fn release_key(conn: &mut SqliteConnection, ticket: KeyTicket) -> Result<(), StoreError> {
    sqlx::query(
        "delete from idempotency_keys
         where owner = $1 and key = $2 and token = $3 and task_id is null",
    )
    .bind(&ticket.key.owner)
    .bind(&ticket.key.key)
    .bind(ticket.token)
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn extend_key(
    conn: &mut SqliteConnection,
    now: i64,
    ticket: KeyTicket,
    hold: Duration,
) -> Result<(), StoreError> {
    sqlx::query(
        "update idempotency_keys set held_until = $4
         where owner = $1 and key = $2 and token = $3 and task_id is null",
    )
    .bind(&ticket.key.owner)
    .bind(&ticket.key.key)
    .bind(ticket.token)
    .bind(now + micros(hold))
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn expire_keys(
    reads: &SqlitePool,
    writer: &Writer,
    now: i64,
    age: Duration,
    limit: u32,
) -> Result<u64, StoreError> {
    let before = now.saturating_sub(micros(age));
    let oldest: Option<i64> =
        sqlx::query_scalar("select min(created_at) from idempotency_keys").fetch_one(reads).await?;
    if oldest.is_none_or(|oldest| oldest > before) {
        return Ok(0);
    }
    writer
        .run(move |conn, _| {
            Box::pin(async move {
                let expired = sqlx::query(
                    "delete from idempotency_keys where (owner, key) in (
                         select owner, key from idempotency_keys
                         where created_at <= $1 and (task_id is not null or held_until <= $2)
                         order by created_at limit $3)",
                )
                .bind(before)
                .bind(now)
                .bind(limit)
                .execute(conn)
                .await?;
                Ok(expired.rows_affected())
            })
        })
        .await
}

/// One script, so that it crosses to SQLite's thread once. Its statements share their parameters,
/// which works with `$1`, not with `?1`: of the latter, sqlx miscounts those that a statement leaves
/// out. Without a key, the last statement finds no row.
const ACCEPT: &str = "
    insert into images (id, sha256, bytes, format, title, tags, filename, owner, visibility, created_at,
                        fresh)
    values ($1, $2, $3, $4, $5, $6, $7, $17, $18, $8, 1);

    insert into tasks (id, kind, lane, status, image_id, jobs_total, owner, created_at, updated_at)
    values ($9, 'upload', $10, 'queued', $1, json_array_length($11), $17, $8, $8);

    insert into jobs (id, task_id, image_id, kind, lane, share, status, max_attempts, run_at,
                      waiting_since, created_at, updated_at, traceparent, needs_version)
    select unhex(value ->> 0), $9, $1, value ->> 1, $10, $17, 'queued', $12, $8, $8, $8, $8, $16,
           case value ->> 1 when 'thumbnail' then 2 else 1 end
    from json_each($11);

    insert into outbox (job_id, kind, lane, share, generation, due_at)
    select id, kind, lane, share, 0, $8 from jobs where task_id = $9;

    update idempotency_keys set task_id = $9, fingerprint = $13 where owner = $14 and key = $15;";

pub async fn accept(
    conn: &mut SqliteConnection,
    now: i64,
    upload: NewUpload,
) -> Result<Accepted, StoreError> {
    if let Some((ticket, _)) = &upload.key
        && !holds_key(conn, ticket, &upload).await?
    {
        return Ok(Accepted::KeyLost);
    }
    if !upload.quota.is_unlimited() {
        let used = access::usage(&mut *conn, &upload.owner).await?;
        if !upload.quota.has_room(used, upload.bytes) {
            // It may be this very upload that fills it.
            let before = recorded(conn, &upload).await?.map(rows::time).transpose()?;
            return Ok(before.map_or(Accepted::OverQuota(used), Accepted::Yes));
        }
    }
    let key = upload.key.as_ref();
    let jobs: Vec<(String, JobKind)> =
        upload.jobs.iter().map(|(id, kind)| (id.0.simple().to_string(), *kind)).collect();
    let inserted = sqlx::query(ACCEPT)
        .bind(upload.image)
        .bind(upload.sha256.as_bytes())
        .bind(to_i64(upload.bytes))
        .bind(upload.format.as_str())
        .bind(&upload.title)
        .bind(Json(&upload.tags))
        .bind(&upload.filename)
        .bind(now)
        .bind(upload.task)
        .bind(upload.lane.as_str())
        .bind(Json(jobs))
        .bind(upload.max_attempts)
        .bind(key.map(|(_, fingerprint)| fingerprint.as_bytes()))
        .bind(key.map(|(ticket, _)| ticket.key.owner.storage_name()))
        .bind(key.map(|(ticket, _)| ticket.key.key.as_str()))
        .bind(upload.trace.map(|trace| trace.to_string()))
        .bind(&upload.owner)
        .bind(upload.visibility.as_str())
        .execute(&mut *conn)
        .await;
    match inserted {
        Ok(_) => Ok(Accepted::Yes(rows::time(now)?)),
        // Called again after an answer that was lost: the first call had recorded it all.
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
            match recorded(conn, &upload).await? {
                Some(at) => Ok(Accepted::Yes(rows::time(at)?)),
                None => Err(sqlx::Error::Database(error).into()),
            }
        }
        Err(error) => Err(error.into()),
    }
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

/// When this very upload was accepted before, if it was. Its jobs tell: of a script that failed, the
/// image and the task may be there until the rollback, but not they.
async fn recorded(
    conn: &mut SqliteConnection,
    upload: &NewUpload,
) -> Result<Option<i64>, StoreError> {
    let found = sqlx::query_scalar(
        "select created_at from jobs where task_id = $1 and image_id = $2 limit 1",
    )
    .bind(upload.task)
    .bind(upload.image)
    .fetch_optional(conn)
    .await?;
    Ok(found)
}
