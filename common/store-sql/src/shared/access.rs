//! API keys, keys for signed URLs, usage, and the audit log.

use async_trait::async_trait;
use safelight_domain::{ApiKey, Owner, SigningKey, Usage};
use safelight_store::{
    Access, AuditEntry, KnownApiKey, LiveSigningKey, NewApiKey, NewSigningKey, PageRequest,
    StoreError,
};
use sqlx::{Executor, Row};
use uuid::Uuid;

use super::{
    dialect::{
        Db, DbRow, Statement, any_text_of, bind_now, later, lock, now, optional_time, span, texts,
        time,
    },
    rows,
    store::SqlStore,
};
use crate::locks::Exclusive;

macro_rules! key_columns {
    () => {
        " id, prefix, owner, scopes, created_at, expires_at, revoked_at, last_used_at "
    };
}

#[async_trait]
impl Access for SqlStore {
    async fn create_api_key(&self, new: &NewApiKey) -> Result<(), StoreError> {
        let query = sqlx::query(concat!(
            "insert into api_keys (id, prefix, owner, scopes, secret_sha256, expires_at, created_at)
             values ($1, $2, $3, $4, $5, ",
            later!("$6", "$7"),
            ", ",
            now!("$7"),
            ") on conflict (id) do nothing"
        ));
        let query = query
            .bind(new.id)
            .bind(&new.prefix)
            .bind(&new.owner)
            .bind(new.scopes.to_string())
            .bind(new.secret_sha256.as_bytes())
            .bind(new.lifetime.map(span));
        self.execute_now(query).await.map(drop)
    }

    async fn api_keys(&self, prefixes: &[String]) -> Result<Vec<KnownApiKey>, StoreError> {
        let query = sqlx::query(concat!(
            "select",
            key_columns!(),
            ", secret_sha256,
             revoked_at is null and (expires_at is null or expires_at > ",
            now!("$2"),
            ") as is_live
             from api_keys where prefix ",
            any_text_of!("$1")
        ));
        let rows = self.fetch_all(self.at_now(query.bind(texts(prefixes)))).await?;
        let known = |row: &DbRow| {
            let secret_sha256 = rows::hash(row, "secret_sha256")?;
            Ok(KnownApiKey { key: api_key(row)?, secret_sha256, is_live: row.try_get("is_live")? })
        };
        rows.iter().map(known).collect()
    }

    async fn has_api_keys(&self) -> Result<bool, StoreError> {
        let query = sqlx::query("select exists (select 1 from api_keys) as found");
        Ok(self.fetch_one(query).await?.try_get("found")?)
    }

    async fn list_api_keys(
        &self,
        owner: Option<&Owner>,
        page: &PageRequest<Uuid>,
    ) -> Result<Vec<ApiKey>, StoreError> {
        let query = sqlx::query(concat!(
            "select",
            key_columns!(),
            "from api_keys where (cast($1 as text) is null or owner = $1) and id < $2
             order by id desc limit $3"
        ));
        let query =
            query.bind(owner).bind(page.before.unwrap_or(Uuid::max())).bind(i64::from(page.limit));
        self.fetch_all(query).await?.iter().map(api_key).collect()
    }

    async fn revoke_api_key(&self, id: Uuid) -> Result<Option<ApiKey>, StoreError> {
        let query = sqlx::query(concat!(
            "update api_keys set revoked_at = coalesce(revoked_at, ",
            now!("$2"),
            ") where id = $1 returning",
            key_columns!()
        ));
        self.change_now(query.bind(id)).await?.as_ref().map(api_key).transpose()
    }

    async fn note_key_use(&self, id: Uuid) -> Result<(), StoreError> {
        let query = sqlx::query(concat!(
            "update api_keys set last_used_at = ",
            now!("$2"),
            " where id = $1"
        ));
        self.execute_now(query.bind(id)).await.map(drop)
    }

    async fn create_signing_key(
        &self,
        new: &NewSigningKey,
        at_most: u32,
    ) -> Result<bool, StoreError> {
        let query = sqlx::query(concat!(
            "insert into signing_keys (id, owner, secret, created_at)
             select $1, $2, $3, ",
            now!("$5"),
            " where (select count(*) from signing_keys
                     where owner = $2 and revoked_at is null and id <> $1) < $4
             on conflict (id) do update set secret = excluded.secret"
        ));
        let query = query.bind(&new.id).bind(&new.owner).bind(&new.secret).bind(i64::from(at_most));
        let owner = new.owner.clone();
        self.transaction(move |conn, now| {
            Box::pin(async move {
                // Of two concurrent calls, both could find that there is no other key.
                lock(conn, Exclusive::SigningKeys(&owner)).await?;
                Ok(bind_now(query, now).execute(conn).await?.rows_affected() == 1)
            })
        })
        .await
    }

    async fn signing_key(&self, id: &str) -> Result<Option<LiveSigningKey>, StoreError> {
        let query = sqlx::query(
            "select id, owner, created_at, revoked_at, secret from signing_keys
             where id = $1 and revoked_at is null",
        );
        self.fetch_optional(query.bind(id)).await?.as_ref().map(live).transpose()
    }

    async fn newest_signing_key(
        &self,
        owner: &Owner,
    ) -> Result<Option<LiveSigningKey>, StoreError> {
        let query = sqlx::query(
            "select id, owner, created_at, revoked_at, secret from signing_keys
             where owner = $1 and revoked_at is null order by created_at desc, id limit 1",
        );
        self.fetch_optional(query.bind(owner)).await?.as_ref().map(live).transpose()
    }

    async fn list_signing_keys(
        &self,
        owner: Option<&Owner>,
    ) -> Result<Vec<SigningKey>, StoreError> {
        let query = sqlx::query(
            "select id, owner, created_at, revoked_at from signing_keys
             where cast($1 as text) is null or owner = $1
             order by created_at desc, id limit 10000",
        );
        self.fetch_all(query.bind(owner)).await?.iter().map(signing).collect()
    }

    async fn revoke_signing_key(&self, id: &str) -> Result<Option<SigningKey>, StoreError> {
        let query = sqlx::query(concat!(
            "update signing_keys set revoked_at = coalesce(revoked_at, ",
            now!("$2"),
            ") where id = $1 returning id, owner, created_at, revoked_at"
        ));
        self.change_now(query.bind(id)).await?.as_ref().map(signing).transpose()
    }

    async fn usage(&self, owner: &Owner) -> Result<Usage, StoreError> {
        usage_in(&self.fetch_one(usage_query(owner)).await?)
    }

    async fn audit(&self, entry: &AuditEntry) -> Result<(), StoreError> {
        let query = sqlx::query(concat!(
            "insert into audit_log (id, key, owner, action, target, at)
             values ($1, $2, $3, $4, $5, ",
            now!("$6"),
            ") on conflict (id) do nothing"
        ));
        let query = query
            .bind(entry.id)
            .bind(&entry.key)
            .bind(&entry.owner)
            .bind(&entry.action)
            .bind(&entry.target);
        self.execute_now(query).await.map(drop)
    }

    async fn list_audit(&self, page: &PageRequest<Uuid>) -> Result<Vec<AuditEntry>, StoreError> {
        let query = sqlx::query(
            "select id, at, key, owner, action, target from audit_log where id < $1
             order by id desc limit $2",
        );
        let query = query.bind(page.before.unwrap_or(Uuid::max())).bind(i64::from(page.limit));
        self.fetch_all(query).await?.iter().map(audit_entry).collect()
    }
}

/// What an owner stores, as a transaction sees it.
pub async fn usage(
    executor: impl Executor<'_, Database = Db>,
    owner: &Owner,
) -> Result<Usage, StoreError> {
    usage_in(&usage_query(owner).fetch_one(executor).await?)
}

fn usage_query(owner: &Owner) -> Statement<'static> {
    let query = sqlx::query(
        "select cast(coalesce(sum(images), 0) as bigint) as images,
                cast(coalesce(sum(bytes), 0) as bigint) as bytes
         from usage where owner = $1",
    );
    query.bind(owner)
}

fn usage_in(row: &DbRow) -> Result<Usage, StoreError> {
    let count = |column: &str| row.try_get(column).map(|count: i64| count.try_into().unwrap_or(0));
    Ok(Usage { images: count("images")?, bytes: count("bytes")? })
}

fn api_key(row: &DbRow) -> Result<ApiKey, StoreError> {
    Ok(ApiKey {
        id: row.try_get("id")?,
        prefix: row.try_get("prefix")?,
        owner: row.try_get("owner")?,
        scopes: row.try_get::<&str, _>("scopes")?.parse()?,
        created_at: time(row, "created_at")?,
        expires_at: optional_time(row, "expires_at")?,
        revoked_at: optional_time(row, "revoked_at")?,
        last_used_at: optional_time(row, "last_used_at")?,
    })
}

fn live(row: &DbRow) -> Result<LiveSigningKey, StoreError> {
    Ok(LiveSigningKey { key: signing(row)?, secret: row.try_get("secret")? })
}

fn signing(row: &DbRow) -> Result<SigningKey, StoreError> {
    Ok(SigningKey {
        id: row.try_get("id")?,
        owner: row.try_get("owner")?,
        created_at: time(row, "created_at")?,
        revoked_at: optional_time(row, "revoked_at")?,
    })
}

fn audit_entry(row: &DbRow) -> Result<AuditEntry, StoreError> {
    Ok(AuditEntry {
        id: row.try_get("id")?,
        at: time(row, "at")?,
        key: row.try_get("key")?,
        owner: row.try_get("owner")?,
        action: row.try_get("action")?,
        target: row.try_get("target")?,
    })
}
