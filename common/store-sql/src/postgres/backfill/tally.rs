//! What has ended of a backfill's work is counted, reported and forgotten.

use safelight_domain::{ItemOutcome, TaskId};
use safelight_store::{StoreError, tallied::Tallied};
use sqlx::{PgPool, Row};

use super::{item, touch, write_items};
use crate::convert::to_i64;
use crate::postgres::prune;

/// Children that have ended and are not counted, each with what its report line says.
const ENDED: &str = "
    select t.id, t.image_id, t.source, j.error_code as reason,
           -- What failed because its picture was deleted meanwhile did not fail.
           case when t.status = 'failed' and i.discarded_at is not null then 'cancelled'
                else t.status end as status,
           coalesce(j.error_message, (select string_agg(n.note, '; ') from jobs n
                                      where n.task_id = t.id)) as detail
    from tasks t
    left join images i on i.id = t.image_id
    left join lateral (
        select error_code, error_message from jobs
        where task_id = t.id and status = 'failed' order by id limit 1) j on true
    where t.backfill_id = $1 and not t.tallied and t.status in ('succeeded', 'failed', 'cancelled')
    order by t.id limit $2 for update of t";

/// Notes for failed jobs that one of these tasks has done later what they could not.
const SUPERSEDE: &str = "
    update jobs f set superseded = true
    from jobs s, tasks t
    where s.task_id = any($1) and s.status = 'succeeded'
      and t.image_id = s.image_id and f.task_id = t.id
      and f.kind = s.kind and f.status = 'failed' and f.updated_at < s.updated_at";

const END: &str = "
    with done as (
        update backfills set state = 'ended', foreman = null, paused = false
        where task_id = $1 and state = 'walked' and retrying_since is null
          and planned = (case when (spec ->> 'dry_run')::boolean then planned
                              else succeeded + failed + cancelled_count end)
        returning task_id, cancelled, problem is not null or failed + refused > 0 as incomplete)
    update tasks t
    set status = case when done.cancelled then 'cancelled' when incomplete then 'failed'
                      else 'succeeded' end,
        finished_at = now(), updated_at = now(), version = version + 1
    from done where t.id = done.task_id";

pub async fn tally(pool: &PgPool, task: TaskId, limit: u32) -> Result<u64, StoreError> {
    let mut transaction = pool.begin().await?;
    let found = sqlx::query("select 1 from backfills where task_id = $1 for update")
        .bind(task)
        .fetch_optional(&mut *transaction)
        .await?;
    if found.is_none() {
        return Ok(0);
    }
    let rows =
        sqlx::query(ENDED).bind(task).bind(i64::from(limit)).fetch_all(&mut *transaction).await?;
    let mut ended = Tallied::default();
    for row in &rows {
        ended.add(row.try_get("id")?, item(row, "image_id", "status")?);
    }
    if !rows.is_empty() {
        write_items(&mut transaction, task, &ended.items).await?;
        sqlx::query(SUPERSEDE).bind(&ended.others).execute(&mut *transaction).await?;
        sqlx::query("update tasks set tallied = true where id = any($1)")
            .bind(&ended.failed)
            .execute(&mut *transaction)
            .await?;
        prune::forget(&mut transaction, &ended.others).await?;
        sqlx::query(
            "update backfills set succeeded = succeeded + $2, failed = failed + $3,
                                  cancelled_count = cancelled_count + $4
             where task_id = $1",
        )
        .bind(task)
        .bind(to_i64(ended.count(ItemOutcome::Succeeded)))
        .bind(to_i64(ended.count(ItemOutcome::Failed)))
        .bind(to_i64(ended.count(ItemOutcome::Cancelled)))
        .execute(&mut *transaction)
        .await?;
        touch(&mut transaction, task).await?;
    }
    sqlx::query(END).bind(task).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(rows.len() as u64)
}
