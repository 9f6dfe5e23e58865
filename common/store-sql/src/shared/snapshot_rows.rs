//! What a copy of the database knows.

use futures::{TryStreamExt, stream::BoxStream};
use safelight_domain::InstallationId;
use safelight_store::StoreError;
use sqlx::Row;

use super::{
    dialect::{Conn, DbRow, big},
    rows,
};
use crate::snapshot::{BytesState, NeededBytes, SnapshotFacts};

/// The facts of a copy.
pub async fn facts(conn: &mut Conn) -> Result<SnapshotFacts, StoreError> {
    let query = sqlx::query(
        "select (select id from installation) as id,
                (select max(version) from _sqlx_migrations where success) as version,
                (select count(*) from images where discarded_at is null) as images",
    );
    let row = query.fetch_one(conn).await?;
    Ok(SnapshotFacts {
        installation: InstallationId(row.try_get("id")?),
        schema_version: row.try_get("version")?,
        images: big(&row, "images")?,
    })
}

/// The bytes that images need, ordered by hash. An upload whose write job has failed can be retried as long as its
/// bytes are staged.
pub fn needed(conn: &mut Conn) -> BoxStream<'_, Result<NeededBytes, StoreError>> {
    let query = sqlx::query(
        "select i.sha256, i.bytes, i.id, i.stored_at is not null as is_stored,
                exists (select 1 from tasks t join jobs j on j.task_id = t.id
                        where t.image_id = i.id and j.kind = 'write'
                          and j.status in ('queued', 'running')) as is_open
         from images i
         where i.discarded_at is null
         order by i.sha256, i.id",
    );
    let rows = query.fetch(conn).map_err(StoreError::from);
    Box::pin(rows.and_then(async |row| needed_of(&row)))
}

fn needed_of(row: &DbRow) -> Result<NeededBytes, StoreError> {
    let state = match (row.try_get("is_stored")?, row.try_get("is_open")?) {
        (true, _) => BytesState::Stored,
        (false, true) => BytesState::Staged,
        (false, false) => BytesState::Failed,
    };
    Ok(NeededBytes {
        sha256: rows::hash(row, "sha256")?,
        bytes: big(row, "bytes")?,
        image: row.try_get("id")?,
        state,
    })
}
