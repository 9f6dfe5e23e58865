//! Accepting uploads: idempotency keys, and the one statement of an upload.

use std::time::Duration;

use chrono::{DateTime, Utc};
use safelight_domain::ContentHash;
use safelight_store::{Accepted, IdempotencyKey, KeyState, KeyTicket, NewUpload, StoreError};
use sqlx::{PgExecutor, PgPool, Row, types::Json};
use uuid::Uuid;

use super::{access, interval};
use crate::convert::to_i64;

pub async fn reserve_key(
    pool: &PgPool,
    key: &IdempotencyKey,
    hold: Duration,
) -> Result<KeyState, StoreError> {
    loop {
        if let Some(ticket) = try_reserve(pool, key, hold).await? {
            return Ok(KeyState::Reserved(ticket));
        }
        let row = sqlx::query(
            "select task_id, fingerprint from idempotency_keys where owner = $1 and key = $2",
        )
        .bind(&key.owner)
        .bind(&key.key)
        .fetch_optional(pool)
        .await?;
        // It was given back between the two statements: it is free again.
        let Some(row) = row else { continue };
        let Some(task) = row.try_get("task_id")? else { return Ok(KeyState::InFlight) };
        let fingerprint = ContentHash::try_from(row.try_get::<&[u8], _>("fingerprint")?)
            .map_err(|error| StoreError::Corrupt(format!("fingerprint: {error}")))?;
        return Ok(KeyState::Used { task, fingerprint });
    }
}

async fn try_reserve(
    pool: &PgPool,
    key: &IdempotencyKey,
    hold: Duration,
) -> Result<Option<KeyTicket>, StoreError> {
    let token = Uuid::new_v4();
    let reserved = sqlx::query(
        "insert into idempotency_keys (owner, key, token, held_until)
         values ($1, $2, $3, now() + $4)
         on conflict (owner, key) do update
         set token = excluded.token, held_until = excluded.held_until,
             created_at = excluded.created_at
         where idempotency_keys.task_id is null and idempotency_keys.held_until <= now()",
    )
    .bind(&key.owner)
    .bind(&key.key)
    .bind(token)
    .bind(interval(hold))
    .execute(pool)
    .await?;
    let ticket = || KeyTicket { key: key.clone(), token };
    Ok((reserved.rows_affected() == 1).then(ticket))
}

pub async fn release_key(pool: &PgPool, ticket: &KeyTicket) -> Result<(), StoreError> {
    sqlx::query(
        "delete from idempotency_keys
         where owner = $1 and key = $2 and token = $3 and task_id is null",
    )
    .bind(&ticket.key.owner)
    .bind(&ticket.key.key)
    .bind(ticket.token)
    .execute(pool)
    .await?;
    Ok(())
}

pub async fn extend_key(
    pool: &PgPool,
    ticket: &KeyTicket,
    hold: Duration,
) -> Result<(), StoreError> {
    sqlx::query(
        "update idempotency_keys set held_until = now() + $4
         where owner = $1 and key = $2 and token = $3 and task_id is null",
    )
    .bind(&ticket.key.owner)
    .bind(&ticket.key.key)
    .bind(ticket.token)
    .bind(interval(hold))
    .execute(pool)
    .await?;
    Ok(())
}

pub async fn expire_keys(pool: &PgPool, age: Duration, limit: u32) -> Result<u64, StoreError> {
    let expired = sqlx::query(
        "delete from idempotency_keys where (owner, key) in (
             select owner, key from idempotency_keys
             where created_at <= now() - $1 and (task_id is not null or held_until <= now())
             order by created_at limit $2 for update skip locked)",
    )
    .bind(interval(age))
    .bind(i64::from(limit))
    .execute(pool)
    .await?;
    Ok(expired.rows_affected())
}

/// One statement, one round trip, one commit. Without a key `$13` is null and `keyed` is empty.
const ACCEPT: &str = "
    with keyed as (
        update idempotency_keys set task_id = $8, fingerprint = $16
        where owner = $13 and key = $14 and token = $15 and (task_id is null or task_id = $8)
        returning 1),
    image as (
        insert into images (id, sha256, bytes, format, title, tags, filename, owner, visibility,
                            fresh)
        select $1, $2, $3, $4, $5, $6, $7, $18, $19, true
        where $13::text is null or exists (select from keyed)
        returning id, created_at),
    task as (
        insert into tasks (id, kind, lane, status, image_id, jobs_total, owner)
        select $8, 'upload', $9, 'queued', image.id, cardinality($10::uuid[]), $18 from image
        returning id, image_id),
    job as (
        insert into jobs (id, task_id, image_id, kind, lane, share, status, max_attempts, traceparent,
                          needs_version)
        select new.id, task.id, task.image_id, new.kind, $9, $18, 'queued', $12, $17,
               case new.kind when 'thumbnail' then 2 else 1 end
        from task, unnest($10::uuid[], $11::text[]) as new (id, kind)
        returning id, kind, lane, share),
    bell as (
        insert into outbox (job_id, kind, lane, share, generation)
        select id, kind, lane, share, 0 from job)
    select created_at from image";

/// What counts for the quota of one owner is recorded one after the other. The next statement sees what
/// those before have added.
pub(super) const LOCK_QUOTA: &str =
    "select pg_advisory_xact_lock(hashtextextended('quota of ' || $1, 0))";

pub async fn accept(pool: &PgPool, upload: &NewUpload) -> Result<Accepted, StoreError> {
    let accepted = if upload.quota.is_unlimited() {
        insert(pool, upload).await
    } else {
        accept_within_quota(pool, upload).await
    };
    match accepted {
        // Called again after an answer that was lost: the first call had recorded it all.
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
            match recorded(pool, upload).await? {
                Some(at) => Ok(Accepted::Yes(at)),
                None => Err(sqlx::Error::Database(error).into()),
            }
        }
        other => Ok(other?),
    }
}

async fn accept_within_quota(pool: &PgPool, upload: &NewUpload) -> Result<Accepted, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    sqlx::query(LOCK_QUOTA).bind(&upload.owner).execute(&mut *transaction).await?;
    let used = access::usage(&mut *transaction, &upload.owner).await?;
    if !upload.quota.has_room(used, upload.bytes) {
        // It may be this very upload that fills it.
        let before = recorded(&mut *transaction, upload).await?;
        return Ok(before.map_or(Accepted::OverQuota(used), Accepted::Yes));
    }
    let accepted = insert(&mut *transaction, upload).await?;
    transaction.commit().await?;
    Ok(accepted)
}

async fn insert(
    executor: impl PgExecutor<'_>,
    upload: &NewUpload,
) -> Result<Accepted, sqlx::Error> {
    let key = upload.key.as_ref();
    let accepted: Option<DateTime<Utc>> = sqlx::query_scalar(ACCEPT)
        .bind(upload.image)
        .bind(upload.sha256.as_bytes())
        .bind(to_i64(upload.bytes))
        .bind(upload.format.as_str())
        .bind(&upload.title)
        .bind(Json(&upload.tags))
        .bind(&upload.filename)
        .bind(upload.task)
        .bind(upload.lane.as_str())
        .bind(upload.jobs.iter().map(|(id, _)| id.0).collect::<Vec<_>>())
        .bind(upload.jobs.iter().map(|(_, kind)| kind.as_str()).collect::<Vec<_>>())
        .bind(i32::try_from(upload.max_attempts).unwrap_or(i32::MAX))
        .bind(key.map(|(ticket, _)| ticket.key.owner.storage_name()))
        .bind(key.map(|(ticket, _)| ticket.key.key.as_str()))
        .bind(key.map(|(ticket, _)| ticket.token))
        .bind(key.map(|(_, fingerprint)| fingerprint.as_bytes()))
        .bind(upload.trace.map(|trace| trace.to_string()))
        .bind(&upload.owner)
        .bind(upload.visibility.as_str())
        .fetch_optional(executor)
        .await?;
    Ok(accepted.map_or(Accepted::KeyLost, Accepted::Yes))
}

/// When this very upload was accepted before, if it was.
async fn recorded(
    executor: impl PgExecutor<'_>,
    upload: &NewUpload,
) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar("select created_at from tasks where id = $1 and image_id = $2")
        .bind(upload.task)
        .bind(upload.image)
        .fetch_optional(executor)
        .await
}
