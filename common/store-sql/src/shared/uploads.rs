//! Accepting uploads, and requests for renditions that an image lacks.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use safelight_domain::{ContentHash, JobKind};
use safelight_store::{
    Accepted, DamagedRendition, IdempotencyKey, KeyState, KeyTicket, LastRenditionJob, NewUpload,
    RenditionRequest, Requested, StoreError, Uploads,
};
use sqlx::{Executor, Row};
use uuid::Uuid;

use super::{
    access::usage,
    create::{create_tasks, insert_upload},
    dialect::{
        Conn, Db, DbRow, Now, Statement, ago, bind_now, instant, later, lock, lock_rows, now, span,
        time,
    },
    rows,
    store::SqlStore,
};
use crate::{locks::Exclusive, new_task::NewTask};

#[async_trait]
impl Uploads for SqlStore {
    async fn reserve_key(
        &self,
        key: &IdempotencyKey,
        hold: Duration,
    ) -> Result<KeyState, StoreError> {
        loop {
            if let Some(ticket) = try_reserve(self, key, hold).await? {
                return Ok(KeyState::Reserved(ticket));
            }
            let query = sqlx::query(
                "select task_id, fingerprint from idempotency_keys where owner = $1 and key = $2",
            );
            let row = self.fetch_optional(query.bind(&key.owner).bind(&key.key)).await?;
            // It was released between the two statements: it is free again.
            let Some(row) = row else { continue };
            let Some(task) = row.try_get("task_id")? else { return Ok(KeyState::InFlight) };
            let fingerprint = ContentHash::try_from(row.try_get::<&[u8], _>("fingerprint")?)
                .map_err(|error| StoreError::Corrupt(format!("fingerprint: {error}")))?;
            return Ok(KeyState::Used { task, fingerprint });
        }
    }

    async fn release_key(&self, ticket: &KeyTicket) -> Result<(), StoreError> {
        let query = sqlx::query(
            "delete from idempotency_keys
             where owner = $1 and key = $2 and token = $3 and task_id is null",
        );
        let query = query.bind(&ticket.key.owner).bind(&ticket.key.key).bind(ticket.token);
        self.execute(query).await.map(drop)
    }

    async fn extend_key(&self, ticket: &KeyTicket, hold: Duration) -> Result<(), StoreError> {
        let query = sqlx::query(concat!(
            "update idempotency_keys set held_until = ",
            later!("$4", "$5"),
            " where owner = $1 and key = $2 and token = $3 and task_id is null"
        ));
        let query = query.bind(&ticket.key.owner).bind(&ticket.key.key).bind(ticket.token);
        self.execute_now(query.bind(span(hold))).await.map(drop)
    }

    async fn expire_keys(&self, age: Duration, limit: u32) -> Result<u64, StoreError> {
        // Most calls find nothing, and should not write.
        let old = sqlx::query(concat!(
            "select 1 from idempotency_keys where created_at <= ",
            ago!("$1", "$2"),
            " limit 1"
        ));
        if self.fetch_optional(self.at_now(old.bind(span(age)))).await?.is_none() {
            return Ok(0);
        }
        let query = sqlx::query(concat!(
            "delete from idempotency_keys where (owner, key) in (
                 select owner, key from idempotency_keys
                 where created_at <= ",
            ago!("$1", "$3"),
            " and (task_id is not null or held_until <= ",
            now!("$3"),
            ") order by created_at limit $2 ",
            lock_rows!("for update skip locked"),
            ")"
        ));
        self.execute_now(query.bind(span(age)).bind(i64::from(limit))).await
    }

    async fn accept(&self, upload: &NewUpload) -> Result<Accepted, StoreError> {
        let new = upload.clone();
        let accepted = if upload.quota.is_unlimited() {
            self.write(move |conn, now| Box::pin(async move { accept(conn, now, &new).await }))
                .await
        } else {
            self.transaction(move |conn, now| Box::pin(accept_within_quota(conn, now, new))).await
        };
        match accepted {
            // A repetition after a lost answer: the first call has recorded everything.
            Err(error) if is_unique_violation(&error) => {
                let before = self.fetch_optional(acceptance(upload)).await?;
                before.map_or(Err(error), |row| Ok(Accepted::Yes(time(&row, "created_at")?)))
            }
            other => other,
        }
    }

    async fn request_rendition(&self, request: &RenditionRequest) -> Result<Requested, StoreError> {
        let request = request.clone();
        self.transaction(move |conn, now| {
            Box::pin(async move { request_rendition(conn, now, &request).await })
        })
        .await
    }
}

async fn try_reserve(
    store: &SqlStore,
    key: &IdempotencyKey,
    hold: Duration,
) -> Result<Option<KeyTicket>, StoreError> {
    let token = Uuid::new_v4();
    let query = sqlx::query(concat!(
        "insert into idempotency_keys (owner, key, token, held_until, created_at)
         values ($1, $2, $3, ",
        later!("$4", "$5"),
        ", ",
        now!("$5"),
        ") on conflict (owner, key) do update
         set token = excluded.token, held_until = excluded.held_until,
             created_at = excluded.created_at
         where idempotency_keys.task_id is null and idempotency_keys.held_until <= ",
        now!("$5")
    ));
    let query = query.bind(&key.owner).bind(&key.key).bind(token).bind(span(hold));
    let is_reserved = store.execute_now(query).await? == 1;
    Ok(is_reserved.then(|| KeyTicket { key: key.clone(), token }))
}

async fn accept_within_quota(
    conn: &mut Conn,
    now: Now,
    upload: NewUpload,
) -> Result<Accepted, StoreError> {
    lock(conn, Exclusive::Quota(&upload.owner)).await?;
    let used = usage(&mut *conn, &upload.owner).await?;
    if upload.quota.has_room(used, upload.bytes) {
        return accept(conn, now, &upload).await;
    }
    // It may be this very upload that fills the quota.
    let before = acceptance(&upload).fetch_optional(conn).await?;
    before.map_or(Ok(Accepted::OverQuota(used)), |row| Ok(Accepted::Yes(time(&row, "created_at")?)))
}

async fn accept(conn: &mut Conn, now: Now, upload: &NewUpload) -> Result<Accepted, StoreError> {
    let accepted: Option<DateTime<Utc>> = insert_upload(conn, now, upload).await?;
    Ok(accepted.map_or(Accepted::KeyLost, Accepted::Yes))
}

/// Finds when this very upload was accepted before.
fn acceptance(upload: &NewUpload) -> Statement<'static> {
    let query = sqlx::query("select created_at from tasks where id = $1 and image_id = $2");
    query.bind(upload.task).bind(upload.image)
}

fn is_unique_violation(error: &StoreError) -> bool {
    let StoreError::Database(cause) = error else { return false };
    let error = cause.downcast_ref::<sqlx::Error>().and_then(sqlx::Error::as_database_error);
    error.is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

async fn request_rendition(
    conn: &mut Conn,
    now: Now,
    request: &RenditionRequest,
) -> Result<Requested, StoreError> {
    if !lock_image(&mut *conn, request).await? {
        return Ok(Requested::Gone);
    }
    let has_forgotten = match &request.damaged {
        Some(damaged) => forget_rendition(&mut *conn, damaged).await?,
        None => false,
    };
    let answer = if has_forgotten { None } else { last_answer(conn, now, request).await? };
    if let Some(answer) = answer {
        return Ok(answer);
    }
    let jobs = [(request.job, JobKind::Thumbnail)];
    create_tasks(conn, now, &[NewTask::of_rendition_request(request, &jobs)]).await?;
    Ok(Requested::Queued(request.task))
}

/// The answer after the image's last thumbnail job; `None` if a new one is to be queued.
async fn last_answer(
    conn: &mut Conn,
    now: Now,
    request: &RenditionRequest,
) -> Result<Option<Requested>, StoreError> {
    let query = sqlx::query(concat!(
        "select t.id, t.kind, j.status, j.error_code, j.error_message, coalesce(t.finished_at > ",
        ago!("$2", "$3"),
        // An end in the future, before the clock was set back, would be recent for as long.
        " and t.finished_at <= ",
        now!("$3"),
        ", false) as is_recent
         from tasks t join jobs j on j.task_id = t.id
         where t.image_id = $1 and j.kind = 'thumbnail'
           and not (j.lane = 'bulk' and j.status in ('queued', 'running'))
         order by j.status in ('queued', 'running') desc, j.id desc limit 1"
    ));
    let query = query.bind(request.image).bind(span(request.again_after));
    let row = bind_now(query, now).fetch_optional(&mut *conn).await?;
    let last = row.as_ref().map(last_job).transpose()?;
    Ok(request.answer(last.as_ref()))
}

/// Removes the record of a rendition, unless it was replaced since. Returns whether it did.
async fn forget_rendition(
    executor: impl Executor<'_, Database = Db>,
    damaged: &DamagedRendition,
) -> Result<bool, StoreError> {
    let query = sqlx::query(
        "delete from renditions
         where sha256 = $1 and preset = $2 and fingerprint = $3
           and format = $4 and rendition_sha256 = $5 and created_at = $6",
    );
    let query = query
        .bind(damaged.of.as_bytes())
        .bind(&damaged.preset)
        .bind(&damaged.fingerprint)
        .bind(damaged.format.as_str())
        .bind(damaged.sha256.as_bytes())
        .bind(instant(damaged.made_at));
    Ok(query.execute(executor).await?.rows_affected() > 0)
}

/// Requests for the same image wait here, and see in their next statement what the first has queued. Returns
/// `false` if the image is gone.
async fn lock_image(
    executor: impl Executor<'_, Database = Db>,
    request: &RenditionRequest,
) -> Result<bool, StoreError> {
    let query = sqlx::query(concat!(
        "select 1 from images where id = $1 and discarded_at is null ",
        lock_rows!("for no key update")
    ));
    Ok(query.bind(request.image).fetch_optional(executor).await?.is_some())
}

fn last_job(row: &DbRow) -> Result<LastRenditionJob, StoreError> {
    Ok(LastRenditionJob {
        task: row.try_get("id")?,
        kind: rows::name(row, "kind")?,
        status: rows::name(row, "status")?,
        error: rows::failure(row)?.map(|failure| failure.code),
        is_recent: row.try_get("is_recent")?,
    })
}
