//! Who leads a backfill. The column `foreman` is its coordinator, and `foreman_until` the end of the lead.

use std::time::Duration;

use safelight_domain::{Backfill, WorkerId};
use safelight_store::StoreError;
use sqlx::{SqliteConnection, SqliteExecutor};

use super::{
    backfill_rows::{backfill, backfill_columns},
    dialect::micros_since,
    store::SqliteStore,
};
use crate::convert::micros;

/// Of the backfills that coordinator `$1` leads or may lead at the time `$2` (at most `$4`), those whose lead
/// it does not already hold until about `$3`.
macro_rules! renewable {
    () => {
        "select task_id from backfills
         where task_id in (
             select task_id from backfills
             where state <> 'ended' and (foreman = $1 or foreman is null or foreman_until <= $2)
             order by paused, task_id limit $4)
           and (foreman is not $1 or foreman_until not between $3 - ($3 - $2) / 3 and $3)"
    };
}

/// See [`Backfills::lead_backfills`](safelight_store::Backfills::lead_backfills).
pub async fn lead_backfills(
    store: &SqliteStore,
    coordinator: WorkerId,
    hold: Duration,
    limit: u32,
) -> Result<Vec<Backfill>, StoreError> {
    // Most calls change nothing, and need not wait for the writer.
    let now = store.clock.now();
    let keeps = sqlx::query_scalar(concat!("select not exists (", renewable!(), ")"))
        .bind(coordinator)
        .bind(now)
        .bind(now + micros(hold))
        .bind(limit)
        .fetch_one(&store.reads)
        .await?;
    if keeps {
        return led(&store.reads, now, coordinator).await;
    }
    store.write(move |conn, now| Box::pin(renew(conn, now, coordinator, hold, limit))).await
}

async fn renew(
    conn: &mut SqliteConnection,
    now: i64,
    coordinator: WorkerId,
    hold: Duration,
    limit: u32,
) -> Result<Vec<Backfill>, StoreError> {
    sqlx::query(concat!(
        "update backfills set foreman = $1, foreman_until = $3 where task_id in (",
        renewable!(),
        ")"
    ))
    .bind(coordinator)
    .bind(now)
    .bind(now + micros(hold))
    .bind(limit)
    .execute(&mut *conn)
    .await?;
    led(conn, now, coordinator).await
}

/// The backfills that a coordinator leads.
async fn led(
    conn: impl SqliteExecutor<'_>,
    now: i64,
    coordinator: WorkerId,
) -> Result<Vec<Backfill>, StoreError> {
    let rows = sqlx::query(concat!(
        "select",
        backfill_columns!("$1"),
        "from backfills b join tasks t on t.id = b.task_id
         where b.state <> 'ended' and b.foreman = $2 order by b.paused, b.task_id"
    ))
    .bind(now)
    .bind(coordinator)
    .fetch_all(conn)
    .await?;
    rows.iter().map(backfill).collect()
}
