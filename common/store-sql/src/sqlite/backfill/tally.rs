//! What has ended of a backfill's work is counted, reported and forgotten.

use safelight_domain::{ItemOutcome, TaskId};
use safelight_store::{StoreError, tallied::Tallied};
use sqlx::{Row, SqliteConnection, SqlitePool};

use super::{item, touch, write_items};
use crate::convert::to_i64;
use crate::sqlite::{prune, rows, writer::Writer};

/// Children that have ended and are not counted, each with what its report line says.
const ENDED: &str = "
    select t.id, t.image_id, t.source, j.error_code as reason,
           -- What failed because its picture was deleted meanwhile did not fail.
           case when t.status = 'failed' and i.discarded_at is not null then 'cancelled'
                else t.status end as status,
           coalesce(j.error_message, (select group_concat(n.note, '; ') from jobs n
                                      where n.task_id = t.id)) as detail
    from tasks t
    left join images i on i.id = t.image_id
    left join jobs j on j.id = (select min(f.id) from jobs f
                                where f.task_id = t.id and f.status = 'failed')
    where t.backfill_id = $1 and not t.tallied and t.status in ('succeeded', 'failed', 'cancelled')
    order by t.id limit $2";

/// Notes for failed jobs that one of these tasks has done later what they could not.
const SUPERSEDE: &str = "
    update jobs as f set superseded = 1
    from jobs s, tasks t
    where s.task_id in (select unhex(value) from json_each($1)) and s.status = 'succeeded'
      and t.image_id = s.image_id and f.task_id = t.id
      and f.kind = s.kind and f.status = 'failed' and f.updated_at < s.updated_at";

pub async fn tally(
    reads: &SqlitePool,
    writer: &Writer,
    task: TaskId,
    limit: u32,
) -> Result<u64, StoreError> {
    // Most looks find nothing, and need no place in the writer's queue.
    let due = sqlx::query(
        "select 1 from backfills b
         where b.task_id = $1 and (b.state = 'walked' or exists (
             select 1 from tasks t
             where t.backfill_id = $1 and not t.tallied
               and t.status in ('succeeded', 'failed', 'cancelled')))",
    )
    .bind(task)
    .fetch_optional(reads)
    .await?;
    if due.is_none() {
        return Ok(0);
    }
    writer.run(move |conn, now| Box::pin(tally_ended(conn, now, task, limit))).await
}

async fn tally_ended(
    conn: &mut SqliteConnection,
    now: i64,
    task: TaskId,
    limit: u32,
) -> Result<u64, StoreError> {
    let rows = sqlx::query(ENDED).bind(task).bind(limit).fetch_all(&mut *conn).await?;
    let mut ended = Tallied::default();
    for row in &rows {
        ended.add(row.try_get("id")?, item(row, "image_id", "status")?);
    }
    if !rows.is_empty() {
        write_items(conn, task, &ended.items).await?;
        sqlx::query(
            "update tasks set tallied = 1 where id in (select unhex(value) from json_each($1))",
        )
        .bind(rows::id_list(ended.failed.iter().copied()))
        .execute(&mut *conn)
        .await?;
        sqlx::query(SUPERSEDE)
            .bind(rows::id_list(ended.others.iter().copied()))
            .execute(&mut *conn)
            .await?;
        prune::forget(conn, ended.others.iter().copied()).await?;
        sqlx::query(
            "update backfills set succeeded = succeeded + $2, failed = failed + $3,
                                  cancelled_count = cancelled_count + $4
             where task_id = $1",
        )
        .bind(task)
        .bind(to_i64(ended.count(ItemOutcome::Succeeded)))
        .bind(to_i64(ended.count(ItemOutcome::Failed)))
        .bind(to_i64(ended.count(ItemOutcome::Cancelled)))
        .execute(&mut *conn)
        .await?;
        touch(conn, now, task).await?;
    }
    end_if_done(conn, now, task).await?;
    Ok(rows.len() as u64)
}

async fn end_if_done(
    conn: &mut SqliteConnection,
    now: i64,
    task: TaskId,
) -> Result<(), StoreError> {
    let status: Option<String> = sqlx::query_scalar(
        "update backfills set state = 'ended', foreman = null, paused = 0
         where task_id = $1 and state = 'walked' and retrying_since is null
           and (spec ->> 'dry_run' or planned = succeeded + failed + cancelled_count)
         returning case when cancelled then 'cancelled'
                        when problem is not null or failed + refused > 0 then 'failed'
                        else 'succeeded' end",
    )
    .bind(task)
    .fetch_optional(&mut *conn)
    .await?;
    let Some(status) = status else { return Ok(()) };
    sqlx::query(
        "update tasks set status = $2, finished_at = $3, updated_at = $3, version = version + 1
         where id = $1",
    )
    .bind(task)
    .bind(status)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}
