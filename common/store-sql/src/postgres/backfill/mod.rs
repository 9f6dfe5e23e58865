//! Backfills. Whoever changes one locks its row first, and the rows of its children's jobs and tasks
//! only after it.
//!
//! A backfill [`walk`]s over images or pictures, step by step: each step is recorded, with the work that it
//! hands out, by [`advance`]; what has ended of it is counted by [`tally`].

mod advance;
mod tally;
mod walk;

use std::{collections::BTreeMap, time::Duration};

use safelight_domain::{Backfill, BackfillSpec, TaskId, WorkerId};
use safelight_store::{Item, NewBackfill, StoreError};
use sqlx::{PgConnection, PgPool, Row, postgres::PgRow, types::Json};
use uuid::Uuid;

pub use advance::advance;
pub use tally::tally;
pub use walk::{count_images, images_with_blobs, obstacles, walk_images};

use super::{
    interval,
    rows::{self, big},
};

/// A backfill `b` with its task `t`.
macro_rules! backfill_columns {
    () => {
        " b.task_id, t.owner, t.created_at, b.spec, b.state, b.paused, b.cancelled,
          b.retrying_since is not null as retrying, b.cursor,
          b.expected, b.planned, b.skipped, b.refused, b.succeeded, b.failed, b.cancelled_count,
          b.problem, extract(epoch from now() - b.fed_at)::float8 as rested "
    };
}

pub async fn create(pool: &PgPool, new: &NewBackfill) -> Result<bool, StoreError> {
    sqlx::query(
        "with task as (
             insert into tasks (id, kind, lane, status, jobs_total, owner)
             values ($1, 'backfill', 'bulk', 'queued', 0, $2)
             on conflict (id) do nothing returning id)
         insert into backfills (task_id, spec) select id, $3 from task",
    )
    .bind(new.task)
    .bind(&new.owner)
    .bind(Json(&new.spec))
    .execute(pool)
    .await?;
    Ok(sqlx::query_scalar(
        "select exists (select from backfills b join tasks t on t.id = b.task_id
                        where b.task_id = $1 and t.owner = $2 and b.spec = $3)",
    )
    .bind(new.task)
    .bind(&new.owner)
    .bind(Json(&new.spec))
    .fetch_one(pool)
    .await?)
}

pub async fn lead(
    pool: &PgPool,
    foreman: WorkerId,
    hold: Duration,
    limit: u32,
) -> Result<Vec<Backfill>, StoreError> {
    let rows = sqlx::query(concat!(
        "with mine as (
             select task_id from backfills
             where state <> 'ended' and (foreman = $1 or foreman is null or foreman_until <= now())
             order by paused, task_id limit $3),
         due as (
             select task_id from backfills
             where task_id = any(array(select task_id from mine))
               and (foreman is null or foreman_until <= now()
                    or foreman = $1
                       and foreman_until not between now() + $2 * 0.67 and now() + $2)
             for update skip locked),
         renewed as (
             update backfills b set foreman = $1, foreman_until = now() + $2
             from due where b.task_id = due.task_id
             returning b.task_id)
         select",
        backfill_columns!(),
        "from backfills b join tasks t on t.id = b.task_id
         where b.task_id = any(array(select task_id from mine))
           and (b.foreman = $1 or b.task_id in (select task_id from renewed))
         order by b.paused, b.task_id"
    ))
    .bind(foreman)
    .bind(interval(hold))
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?;
    rows.iter().map(backfill).collect()
}

/// Those of `ids` that are backfills.
pub async fn of_tasks(pool: &PgPool, ids: &[TaskId]) -> Result<Vec<Backfill>, StoreError> {
    let rows = sqlx::query(concat!(
        "select",
        backfill_columns!(),
        "from backfills b join tasks t on t.id = b.task_id where b.task_id = any($1)"
    ))
    .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
    .fetch_all(pool)
    .await?;
    rows.iter().map(backfill).collect()
}

fn backfill(row: &PgRow) -> Result<Backfill, StoreError> {
    Ok(Backfill {
        id: row.try_get("task_id")?,
        owner: row.try_get("owner")?,
        begun_at: row.try_get("created_at")?,
        spec: row.try_get::<Json<BackfillSpec>, _>("spec")?.0,
        state: rows::name(row, "state")?,
        paused: row.try_get("paused")?,
        cancelled: row.try_get("cancelled")?,
        retrying: row.try_get("retrying")?,
        cursor: row.try_get("cursor")?,
        expected: row
            .try_get::<Option<i64>, _>("expected")?
            .map(|_| big(row, "expected"))
            .transpose()?,
        planned: big(row, "planned")?,
        skipped: row.try_get::<Json<BTreeMap<String, u64>>, _>("skipped")?.0,
        refused: big(row, "refused")?,
        succeeded: big(row, "succeeded")?,
        failed: big(row, "failed")?,
        cancelled_images: big(row, "cancelled_count")?,
        problem: row.try_get("problem")?,
        rested_seconds: row.try_get("rested")?,
    })
}

/// The backfill's document has changed.
async fn touch(conn: &mut PgConnection, task: TaskId) -> Result<(), StoreError> {
    sqlx::query(
        "update tasks
         set version = version + 1, updated_at = now(),
             status = case status when 'queued' then 'running' else status end
         where id = $1",
    )
    .bind(task)
    .execute(conn)
    .await?;
    Ok(())
}

async fn write_items(
    conn: &mut PgConnection,
    task: TaskId,
    items: &[Item],
) -> Result<(), StoreError> {
    if items.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into backfill_items (task_id, item, outcome, reason, detail, source)
         select $1, * from unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[])
         on conflict (task_id, item) do update
         set outcome = excluded.outcome, reason = excluded.reason, detail = excluded.detail",
    )
    .bind(task)
    .bind(items.iter().map(|item| item.id).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.outcome.as_str()).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.reason.clone()).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.detail.clone()).collect::<Vec<_>>())
    .bind(items.iter().map(|item| item.source.clone()).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}

pub async fn pause(pool: &PgPool, task: TaskId, paused: bool) -> Result<bool, StoreError> {
    let mut transaction = pool.begin().await?;
    let found = sqlx::query(
        "update backfills set paused = $2
         where task_id = $1 and state <> 'ended' and not cancelled
           and (not $2 or state = 'walking' or retrying_since is not null)",
    )
    .bind(task)
    .bind(paused)
    .execute(&mut *transaction)
    .await?;
    if found.rows_affected() == 0 {
        return Ok(false);
    }
    touch(&mut transaction, task).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Cancels a backfill's walk. `None` if this is no backfill, `false` if it has ended; else the children
/// that are open.
pub async fn cancel(
    conn: &mut PgConnection,
    task: TaskId,
) -> Result<Option<(bool, Vec<TaskId>)>, StoreError> {
    let row = sqlx::query("select state from backfills where task_id = $1 for update")
        .bind(task)
        .fetch_optional(&mut *conn)
        .await?;
    let Some(row) = row else { return Ok(None) };
    if row.try_get::<&str, _>("state")? == "ended" {
        return Ok(Some((false, Vec::new())));
    }
    sqlx::query(
        "update backfills set cancelled = true, paused = false, retrying_since = null, state = 'walked'
         where task_id = $1",
    )
    .bind(task)
    .execute(&mut *conn)
    .await?;
    touch(conn, task).await?;
    let open: Vec<TaskId> = sqlx::query_scalar(
        "select id from tasks
         where backfill_id = $1 and not tallied and status in ('queued', 'running') order by id",
    )
    .bind(task)
    .fetch_all(&mut *conn)
    .await?;
    Ok(Some((true, open)))
}

/// Opens a failed backfill again, for [`retry_children`]. Answers which of `ids` these are.
pub async fn reopen(conn: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<TaskId>, StoreError> {
    Ok(sqlx::query_scalar(
        "with again as (
             update backfills b set state = 'walked', retrying_since = now(), paused = false
             from tasks t
             where b.task_id = any($1) and t.id = b.task_id and t.status = 'failed'
               and b.failed > 0
             returning b.task_id)
         update tasks t
         set status = 'running', finished_at = null, version = version + 1, updated_at = now()
         from again where t.id = again.task_id
         returning t.id",
    )
    .bind(ids)
    .fetch_all(conn)
    .await?)
}

/// Locks the backfills of these failed children, and takes the children out of their counts: they are
/// about to be tried again.
pub async fn uncount(conn: &mut PgConnection, children: &[Uuid]) -> Result<(), StoreError> {
    sqlx::query(
        "with again as (
             update tasks set tallied = false
             where id = any($1) and backfill_id is not null and tallied
             returning backfill_id),
         counted as (select backfill_id, count(*) as children from again group by backfill_id),
         backfill as (
             update backfills b
             set failed = failed - children, state = case state when 'ended' then 'walked' else state end
             from counted where b.task_id = counted.backfill_id
             returning b.task_id)
         update tasks t
         set status = 'running', finished_at = null, version = version + 1, updated_at = now()
         from backfill where t.id = backfill.task_id",
    )
    .bind(children)
    .execute(conn)
    .await?;
    Ok(())
}

/// Failed children of a backfill, oldest first.
pub async fn failed_children(
    pool: &PgPool,
    task: TaskId,
    limit: u32,
) -> Result<Vec<TaskId>, StoreError> {
    Ok(sqlx::query_scalar(
        "select t.id from tasks t join images i on i.id = t.image_id
                join backfills b on b.task_id = t.backfill_id
         where t.backfill_id = $1 and t.tallied and t.status = 'failed'
           and t.finished_at <= b.retrying_since and i.discarded_at is null
         order by t.id limit $2",
    )
    .bind(task)
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?)
}

pub async fn retried(pool: &PgPool, task: TaskId) -> Result<(), StoreError> {
    sqlx::query("update backfills set retrying_since = null where task_id = $1")
        .bind(task)
        .execute(pool)
        .await?;
    Ok(())
}

pub async fn report(
    pool: &PgPool,
    task: TaskId,
    after: Option<Uuid>,
    limit: u32,
) -> Result<Vec<Item>, StoreError> {
    let rows = sqlx::query(
        "select item, outcome, reason, detail, source from backfill_items
         where task_id = $1 and item > $2 order by item limit $3",
    )
    .bind(task)
    .bind(after.unwrap_or(Uuid::nil()))
    .bind(i64::from(limit))
    .fetch_all(pool)
    .await?;
    rows.iter().map(|row| item(row, "item", "outcome")).collect()
}

/// A line of a report: `id` and `outcome` are the columns that say whose it is and how it ended.
fn item(row: &PgRow, id: &str, outcome: &str) -> Result<Item, StoreError> {
    Ok(Item {
        id: row.try_get(id)?,
        outcome: rows::name(row, outcome)?,
        reason: row.try_get("reason")?,
        detail: row.try_get("detail")?,
        source: row.try_get("source")?,
    })
}
