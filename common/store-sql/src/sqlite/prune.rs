//! Forgetting what ended long ago.

use safelight_domain::TaskId;
use safelight_store::StoreError;
use sqlx::{SqliteConnection, SqlitePool};
use uuid::Uuid;

use super::{rows, writer::Writer};

/// Ended tasks that may be forgotten. Those that failed stay, of a backfill without it: they say why, and can
/// be tried again.
const OLD: &str = "
    select id from tasks t
    where (status in ('succeeded', 'cancelled') or status = 'failed' and kind = 'backfill')
      and id < $1 and finished_at <= $2
      and not exists (select 1 from idempotency_keys k where k.task_id = t.id)
      and not exists (select 1 from images i
                      where i.id = t.image_id and i.discarded_at is not null
                        and i.removed_at is null)
    order by id limit $3";

pub async fn prune(
    reads: &SqlitePool,
    writer: &Writer,
    before: i64,
    born_before: Uuid,
    limit: u32,
) -> Result<u64, StoreError> {
    let old: Vec<TaskId> =
        sqlx::query_scalar(OLD).bind(born_before).bind(before).bind(limit).fetch_all(reads).await?;
    if old.is_empty() {
        return Ok(0);
    }
    writer.run(move |conn, _| Box::pin(forget_old(conn, old, limit))).await
}

async fn forget_old(
    conn: &mut SqliteConnection,
    old: Vec<TaskId>,
    limit: u32,
) -> Result<u64, StoreError> {
    // A failed backfill may have been begun again meanwhile.
    let old: Vec<TaskId> = sqlx::query_scalar(
        "select id from tasks where id in (select unhex(value) from json_each($1))
           and finished_at is not null",
    )
    .bind(rows::id_list(old.iter().map(|id| id.0)))
    .fetch_all(&mut *conn)
    .await?;
    let ids = rows::id_list(old.iter().map(|id| id.0));
    // A backfill's lines and failed children may be many: those go first, as many at once as tasks do.
    let children = sqlx::query(
        "update tasks set backfill_id = null where id in (
             select id from tasks
             where backfill_id in (select unhex(value) from json_each($1)) limit $2)",
    )
    .bind(ids.clone())
    .bind(limit)
    .execute(&mut *conn)
    .await?
    .rows_affected();
    let lines = sqlx::query(
        "delete from backfill_items where (task_id, item) in (
             select task_id, item from backfill_items
             where task_id in (select unhex(value) from json_each($1)) limit $2)",
    )
    .bind(ids.clone())
    .bind(limit)
    .execute(&mut *conn)
    .await?
    .rows_affected()
        + children;
    if lines == 0 {
        sqlx::query(
            "delete from backfills where task_id in (select unhex(value) from json_each($1))",
        )
        .bind(ids)
        .execute(&mut *conn)
        .await?;
        forget(conn, old.iter().map(|id| id.0)).await?;
    }
    Ok(lines.max(old.len() as u64))
}

/// Forgets tasks, and their jobs, that nobody will ask for again.
pub async fn forget(
    conn: &mut SqliteConnection,
    tasks: impl IntoIterator<Item = Uuid>,
) -> Result<(), StoreError> {
    sqlx::query(
        "delete from outbox where job_id in (
             select id from jobs where task_id in (select unhex(value) from json_each($1)));
         delete from jobs where task_id in (select unhex(value) from json_each($1));
         delete from tasks where id in (select unhex(value) from json_each($1))",
    )
    .bind(rows::id_list(tasks))
    .execute(conn)
    .await?;
    Ok(())
}
