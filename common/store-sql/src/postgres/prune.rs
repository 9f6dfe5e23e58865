//! Forgetting what ended long ago.

use std::time::Duration;

use safelight_store::StoreError;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::interval;

/// Ended tasks that may be forgotten. Those that failed stay, of a backfill without it: they say why, and can
/// be tried again.
const OLD: &str = "
    select id from tasks t
    where (status = any($1) or status = 'failed' and kind = 'backfill')
      and id < $2 and finished_at <= now() - $3
      and not exists (select from idempotency_keys k where k.task_id = t.id)
      and not exists (select from images i
                      where i.id = t.image_id and i.discarded_at is not null
                        and i.removed_at is null)
    order by id limit $4 for update skip locked";

pub async fn prune(
    pool: &PgPool,
    age: Duration,
    born_before: Uuid,
    limit: u32,
) -> Result<u64, StoreError> {
    let mut transaction = pool.begin().await?;
    let old: Vec<Uuid> = sqlx::query_scalar(OLD)
        .bind(["succeeded", "cancelled"].as_slice())
        .bind(born_before)
        .bind(interval(age))
        .bind(i64::from(limit))
        .fetch_all(&mut *transaction)
        .await?;
    if old.is_empty() {
        return Ok(0);
    }
    // A backfill's lines and failed children may be many: those go first, as many at once as tasks do.
    let lines: i64 = sqlx::query_scalar(
        "with line as (
             delete from backfill_items where (task_id, item) in (
                 select task_id, item from backfill_items where task_id = any($1) limit $2)
             returning 1),
         child as (
             update tasks set backfill_id = null where id in (
                 select id from tasks where backfill_id = any($1) limit $2)
             returning 1)
         select (select count(*) from line) + (select count(*) from child)",
    )
    .bind(&old)
    .bind(i64::from(limit))
    .fetch_one(&mut *transaction)
    .await?;
    let lines = u64::try_from(lines).unwrap_or(0);
    if lines == 0 {
        sqlx::query("delete from backfills where task_id = any($1)")
            .bind(&old)
            .execute(&mut *transaction)
            .await?;
        forget(&mut transaction, &old).await?;
    }
    transaction.commit().await?;
    Ok(lines.max(old.len() as u64))
}

/// Forgets tasks, and their jobs, that nobody will ask for again.
pub async fn forget(conn: &mut PgConnection, tasks: &[Uuid]) -> Result<(), StoreError> {
    sqlx::query(
        "with gone as (select id from jobs where task_id = any($1)),
         bells as (delete from outbox o using gone where o.job_id = gone.id)
         delete from jobs j using gone where j.id = gone.id",
    )
    .bind(tasks)
    .execute(&mut *conn)
    .await?;
    sqlx::query("delete from tasks where id = any($1)").bind(tasks).execute(conn).await?;
    Ok(())
}
