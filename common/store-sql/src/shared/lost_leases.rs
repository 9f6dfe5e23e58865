//! Leases whose worker has died.

use safelight_domain::JobId;
use safelight_store::{ClaimedJob, StoreError};
use sqlx::Row;

use super::{
    dialect::{Conn, DbRow, Now, bind_now, now},
    rows::{self, backfill_joins, blob_joins, claimed_columns, image_columns},
    store::SqlStore,
};
use crate::convert::readable;

/// See [`Jobs::expired_leases`](safelight_store::Jobs::expired_leases).
pub async fn expired_leases(store: &SqlStore, limit: u32) -> Result<Vec<ClaimedJob>, StoreError> {
    let query = sqlx::query(concat!(
        "with expired as (
             select * from jobs where status = 'running' and lease_until <= ",
        now!("$2"),
        " order by lease_until, id limit $1)
         select",
        claimed_columns!(),
        image_columns!(),
        "from expired j join images i on i.id = j.image_id",
        backfill_joins!(),
        blob_joins!(),
        "order by j.lease_until, j.id, r.preset, r.fingerprint, r.format"
    ));
    let rows = store.fetch_all(store.at_now(query.bind(i64::from(limit)))).await?;
    let job = |row: &DbRow| row.try_get::<JobId, _>("job_id").ok();
    let each = rows.chunk_by(|one, next| job(one) == job(next));
    Ok(readable(each.map(rows::claimed_jobs))?.concat())
}

/// See [`Jobs::take_over`](safelight_store::Jobs::take_over).
pub async fn take_over(conn: &mut Conn, now: Now) -> Result<u64, StoreError> {
    sqlx::query("delete from idempotency_keys where task_id is null").execute(&mut *conn).await?;
    sqlx::query("delete from workers").execute(&mut *conn).await?;
    let query = sqlx::query(concat!(
        "update jobs set lease_until = ",
        now!("$1"),
        " where status = 'running'"
    ));
    Ok(bind_now(query, now).execute(conn).await?.rows_affected())
}
