//! The name of the installation, and whether this database is an older copy of itself.

use std::time::Duration;

use async_trait::async_trait;
use safelight_domain::InstallationId;
use safelight_store::{Installation, Installations, StoreError};
use sqlx::Row;

use super::{
    dialect::{Conn, Now, big, bind_now, later, lineage, now, span},
    store::SqlStore,
};
use crate::convert::to_i64;

#[async_trait]
impl Installations for SqlStore {
    async fn installation(&self) -> Result<Installation, StoreError> {
        self.write(|conn, now| Box::pin(installation(conn, now))).await
    }

    async fn record_mark(&self) -> Result<(), StoreError> {
        self.write(|conn, now| Box::pin(record_mark(conn, now))).await
    }

    async fn advance_generation(&self, at_least: u64) -> Result<u64, StoreError> {
        self.write(move |conn, _| {
            Box::pin(async move {
                let query = sqlx::query(
                    "update installation
                     set generation = case when generation < $1 then $1 else generation + 1 end
                     returning generation",
                );
                big(&query.bind(to_i64(at_least)).fetch_one(conn).await?, "generation")
            })
        })
        .await
    }

    async fn keep_unknown(&self, duration: Duration) -> Result<(), StoreError> {
        self.write(move |conn, now| Box::pin(keep_unknown(conn, now, duration))).await
    }
}

async fn installation(conn: &mut Conn, now: Now) -> Result<Installation, StoreError> {
    let lineage = lineage(conn).await?;
    let query = sqlx::query(concat!(
        "select id, generation, marked_at is not null as is_marked, lineage,
                exists (select 1 from images) as has_images,
                coalesce(keep_unknown_until > ",
        now!("$1"),
        ", false) as keeps_unknown
         from installation"
    ));
    let row = bind_now(query, now).fetch_one(conn).await?;
    let recorded: Option<String> = row.try_get("lineage")?;
    Ok(Installation {
        id: InstallationId(row.try_get("id")?),
        is_marked: row.try_get("is_marked")?,
        has_images: row.try_get("has_images")?,
        generation: big(&row, "generation")?,
        // A server that does not tell is not another one.
        is_other_lineage: recorded.zip(lineage).is_some_and(|(recorded, found)| recorded != found),
        keeps_unknown: row.try_get("keeps_unknown")?,
    })
}

async fn record_mark(conn: &mut Conn, now: Now) -> Result<(), StoreError> {
    let lineage = lineage(conn).await?;
    let query = sqlx::query(concat!(
        "update installation
         set lineage = coalesce(lineage, $1), marked_at = coalesce(marked_at, ",
        now!("$2"),
        ")"
    ));
    bind_now(query.bind(lineage), now).execute(conn).await?;
    Ok(())
}

async fn keep_unknown(conn: &mut Conn, now: Now, duration: Duration) -> Result<(), StoreError> {
    let lineage = lineage(conn).await?;
    let query = sqlx::query(concat!(
        "update installation set lineage = coalesce($1, lineage), keep_unknown_until = ",
        later!("$2", "$3")
    ));
    bind_now(query.bind(lineage).bind(span(duration)), now).execute(conn).await?;
    Ok(())
}
