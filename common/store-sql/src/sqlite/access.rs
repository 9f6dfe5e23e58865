//! Keys, what owners have stored, and the audit log.

use safelight_domain::{ApiKey, Owner, SigningKey, Usage};
use safelight_store::{
    AuditEntry, KnownApiKey, LiveSigningKey, NewApiKey, NewSigningKey, PageRequest, StoreError,
};
use sqlx::{Row, SqliteConnection, SqlitePool, sqlite::SqliteRow};
use uuid::Uuid;

use super::rows;
use crate::convert::micros;

macro_rules! key_columns {
    () => {
        " id, prefix, owner, scopes, created_at, expires_at, revoked_at, last_used_at "
    };
}

pub async fn create_key(
    conn: &mut SqliteConnection,
    now: i64,
    new: NewApiKey,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into api_keys (id, prefix, owner, scopes, secret_sha256, expires_at, created_at)
         values ($1, $2, $3, $4, $5, $6, $7) on conflict (id) do nothing",
    )
    .bind(new.id)
    .bind(&new.prefix)
    .bind(&new.owner)
    .bind(new.scopes.to_string())
    .bind(new.secret_sha256.as_bytes())
    .bind(new.lifetime.map(|lifetime| now.saturating_add(micros(lifetime))))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn key(
    reads: &SqlitePool,
    now: i64,
    prefix: &str,
) -> Result<Option<KnownApiKey>, StoreError> {
    let row = sqlx::query(concat!(
        "select",
        key_columns!(),
        ", secret_sha256,
         revoked_at is null and (expires_at is null or expires_at > $2) as is_live
         from api_keys where prefix = $1"
    ))
    .bind(prefix)
    .bind(now)
    .fetch_optional(reads)
    .await?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(KnownApiKey {
        key: api_key(&row)?,
        secret_sha256: rows::hash(&row, "secret_sha256")?,
        is_live: row.try_get("is_live")?,
    }))
}

pub async fn has_keys(reads: &SqlitePool) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar("select exists (select 1 from api_keys)").fetch_one(reads).await?)
}

pub async fn list_keys(
    reads: &SqlitePool,
    owner: Option<&Owner>,
    page: &PageRequest<Uuid>,
) -> Result<Vec<ApiKey>, StoreError> {
    let rows = sqlx::query(concat!(
        "select",
        key_columns!(),
        "from api_keys where ($1 is null or owner = $1) and id < $2
         order by id desc limit $3"
    ))
    .bind(owner)
    .bind(page.before.unwrap_or(Uuid::max()))
    .bind(page.limit)
    .fetch_all(reads)
    .await?;
    rows.iter().map(api_key).collect()
}

pub async fn revoke_key(
    conn: &mut SqliteConnection,
    now: i64,
    id: Uuid,
) -> Result<Option<ApiKey>, StoreError> {
    let row = sqlx::query(concat!(
        "update api_keys set revoked_at = coalesce(revoked_at, $2) where id = $1 returning",
        key_columns!()
    ))
    .bind(id)
    .bind(now)
    .fetch_optional(conn)
    .await?;
    row.as_ref().map(api_key).transpose()
}

pub async fn note_key_use(
    conn: &mut SqliteConnection,
    now: i64,
    id: Uuid,
) -> Result<(), StoreError> {
    sqlx::query("update api_keys set last_used_at = $2 where id = $1")
        .bind(id)
        .bind(now)
        .execute(conn)
        .await?;
    Ok(())
}

pub async fn create_signing_key(
    conn: &mut SqliteConnection,
    now: i64,
    new: NewSigningKey,
    at_most: u32,
) -> Result<bool, StoreError> {
    let created = sqlx::query(
        "insert into signing_keys (id, owner, secret, created_at)
         select $1, $2, $3, $4
         where (select count(*) from signing_keys
                where owner = $2 and revoked_at is null and id <> $1) < $5
         on conflict (id) do update set secret = excluded.secret",
    )
    .bind(&new.id)
    .bind(&new.owner)
    .bind(&new.secret)
    .bind(now)
    .bind(at_most)
    .execute(conn)
    .await?;
    Ok(created.rows_affected() == 1)
}

pub async fn signing_key(
    reads: &SqlitePool,
    id: &str,
) -> Result<Option<LiveSigningKey>, StoreError> {
    let row = sqlx::query(
        "select id, owner, created_at, revoked_at, secret from signing_keys
         where id = $1 and revoked_at is null",
    )
    .bind(id)
    .fetch_optional(reads)
    .await?;
    row.as_ref().map(live).transpose()
}

pub async fn newest_signing_key(
    reads: &SqlitePool,
    owner: &Owner,
) -> Result<Option<LiveSigningKey>, StoreError> {
    let row = sqlx::query(
        "select id, owner, created_at, revoked_at, secret from signing_keys
         where owner = $1 and revoked_at is null order by created_at desc, id limit 1",
    )
    .bind(owner)
    .fetch_optional(reads)
    .await?;
    row.as_ref().map(live).transpose()
}

pub async fn list_signing_keys(
    reads: &SqlitePool,
    owner: Option<&Owner>,
) -> Result<Vec<SigningKey>, StoreError> {
    let rows = sqlx::query(
        "select id, owner, created_at, revoked_at from signing_keys
         where $1 is null or owner = $1 order by created_at desc, id limit 10000",
    )
    .bind(owner)
    .fetch_all(reads)
    .await?;
    rows.iter().map(signing).collect()
}

pub async fn revoke_signing_key(
    conn: &mut SqliteConnection,
    now: i64,
    id: String,
) -> Result<Option<SigningKey>, StoreError> {
    let row = sqlx::query(
        "update signing_keys set revoked_at = coalesce(revoked_at, $2) where id = $1
         returning id, owner, created_at, revoked_at",
    )
    .bind(id)
    .bind(now)
    .fetch_optional(conn)
    .await?;
    row.as_ref().map(signing).transpose()
}

pub async fn usage(
    executor: impl sqlx::SqliteExecutor<'_>,
    owner: &Owner,
) -> Result<Usage, sqlx::Error> {
    let row = sqlx::query(
        "select coalesce(sum(images), 0) as images, coalesce(sum(bytes), 0) as bytes
         from usage where owner = $1",
    )
    .bind(owner)
    .fetch_one(executor)
    .await?;
    let count = |column: &str| row.try_get(column).map(|count: i64| count.try_into().unwrap_or(0));
    Ok(Usage { images: count("images")?, bytes: count("bytes")? })
}

pub async fn audit(
    conn: &mut SqliteConnection,
    now: i64,
    entry: AuditEntry,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into audit_log (id, key, owner, action, target, at) values ($1, $2, $3, $4, $5, $6)
         on conflict (id) do nothing",
    )
    .bind(entry.id)
    .bind(&entry.key)
    .bind(&entry.owner)
    .bind(&entry.action)
    .bind(&entry.target)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn list_audit(
    reads: &SqlitePool,
    page: &PageRequest<Uuid>,
) -> Result<Vec<AuditEntry>, StoreError> {
    let rows = sqlx::query(
        "select id, at, key, owner, action, target from audit_log where id < $1
         order by id desc limit $2",
    )
    .bind(page.before.unwrap_or(Uuid::max()))
    .bind(page.limit)
    .fetch_all(reads)
    .await?;
    rows.iter().map(audit_entry).collect()
}

fn api_key(row: &SqliteRow) -> Result<ApiKey, StoreError> {
    Ok(ApiKey {
        id: row.try_get("id")?,
        prefix: row.try_get("prefix")?,
        owner: row.try_get("owner")?,
        scopes: row.try_get::<&str, _>("scopes")?.parse()?,
        created_at: rows::time(row.try_get("created_at")?)?,
        expires_at: rows::optional_time(row.try_get("expires_at")?)?,
        revoked_at: rows::optional_time(row.try_get("revoked_at")?)?,
        last_used_at: rows::optional_time(row.try_get("last_used_at")?)?,
    })
}

fn live(row: &SqliteRow) -> Result<LiveSigningKey, StoreError> {
    Ok(LiveSigningKey { key: signing(row)?, secret: row.try_get("secret")? })
}

fn signing(row: &SqliteRow) -> Result<SigningKey, StoreError> {
    Ok(SigningKey {
        id: row.try_get("id")?,
        owner: row.try_get("owner")?,
        created_at: rows::time(row.try_get("created_at")?)?,
        revoked_at: rows::optional_time(row.try_get("revoked_at")?)?,
    })
}

fn audit_entry(row: &SqliteRow) -> Result<AuditEntry, StoreError> {
    Ok(AuditEntry {
        id: row.try_get("id")?,
        at: rows::time(row.try_get("at")?)?,
        key: row.try_get("key")?,
        owner: row.try_get("owner")?,
        action: row.try_get("action")?,
        target: row.try_get("target")?,
    })
}
