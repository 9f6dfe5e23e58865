//! Backfills.
//!
//! A backfill [`walk`]s over images or pictures, step by step: each step is recorded, with the work that it
//! hands out, by [`advance`]; what has ended of it is counted by [`tally`].

mod advance;
mod tally;
mod walk;

use std::{collections::BTreeMap, time::Duration};

use safelight_domain::{Backfill, BackfillSpec, TaskId, WorkerId};
use safelight_store::{Item, NewBackfill, StoreError};
use sqlx::{Row, SqliteConnection, SqliteExecutor, SqlitePool, sqlite::SqliteRow, types::Json};
use uuid::Uuid;

pub use advance::advance;
pub use tally::tally;
pub use walk::{count_images, images_with_blobs, obstacles, walk_images};

use super::{
    rows::{self, number},
    writer::Writer,
};
use crate::convert::micros;

/// A backfill `b` with its task `t`; `$1` is the time.
macro_rules! backfill_columns {
    () => {
        " b.task_id, t.owner, t.created_at, b.spec, b.state, b.paused, b.cancelled,
          b.retrying_since is not null as retrying, b.cursor,
          b.expected, b.planned, b.skipped, b.refused, b.succeeded, b.failed, b.cancelled_count,
          b.problem, ($1 - b.fed_at) / 1000000.0 as rested "
    };
}

pub async fn create(
    conn: &mut SqliteConnection,
    now: i64,
    new: NewBackfill,
) -> Result<bool, StoreError> {
    let created = sqlx::query(
        "insert into tasks (id, kind, lane, status, jobs_total, owner, created_at, updated_at)
         values ($1, 'backfill', 'bulk', 'queued', 0, $2, $3, $3)
         on conflict (id) do nothing",
    )
    .bind(new.task)
    .bind(&new.owner)
    .bind(now)
    .execute(&mut *conn)
    .await?;
    if created.rows_affected() > 0 {
        sqlx::query("insert into backfills (task_id, spec) values ($1, $2)")
            .bind(new.task)
            .bind(Json(&new.spec))
            .execute(&mut *conn)
            .await?;
    }
    Ok(sqlx::query_scalar(
        "select exists (select 1 from backfills b join tasks t on t.id = b.task_id
                        where b.task_id = $1 and t.owner = $2 and b.spec = $3)",
    )
    .bind(new.task)
    .bind(&new.owner)
    .bind(Json(&new.spec))
    .fetch_one(conn)
    .await?)
}

/// Of the backfills that foreman `$1` leads or may lead at the time `$2`, `$4` at most, those that he does
/// not lead until about `$3`.
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

pub async fn lead(
    reads: &SqlitePool,
    writer: &Writer,
    now: i64,
    foreman: WorkerId,
    hold: Duration,
    limit: u32,
) -> Result<Vec<Backfill>, StoreError> {
    // Most looks change nothing, and need no place in the writer's queue.
    let keeps = sqlx::query_scalar(concat!("select not exists (", renewable!(), ")"))
        .bind(foreman)
        .bind(now)
        .bind(now + micros(hold))
        .bind(limit)
        .fetch_one(reads)
        .await?;
    if keeps {
        return led(reads, now, foreman).await;
    }
    writer.run(move |conn, now| Box::pin(renew(conn, now, foreman, hold, limit))).await
}

async fn renew(
    conn: &mut SqliteConnection,
    now: i64,
    foreman: WorkerId,
    hold: Duration,
    limit: u32,
) -> Result<Vec<Backfill>, StoreError> {
    sqlx::query(concat!(
        "update backfills set foreman = $1, foreman_until = $3 where task_id in (",
        renewable!(),
        ")"
    ))
    .bind(foreman)
    .bind(now)
    .bind(now + micros(hold))
    .bind(limit)
    .execute(&mut *conn)
    .await?;
    led(conn, now, foreman).await
}

/// The backfills that a foreman leads.
async fn led(
    conn: impl SqliteExecutor<'_>,
    now: i64,
    foreman: WorkerId,
) -> Result<Vec<Backfill>, StoreError> {
    let rows = sqlx::query(concat!(
        "select",
        backfill_columns!(),
        "from backfills b join tasks t on t.id = b.task_id
         where b.state <> 'ended' and b.foreman = $2 order by b.paused, b.task_id"
    ))
    .bind(now)
    .bind(foreman)
    .fetch_all(conn)
    .await?;
    rows.iter().map(backfill).collect()
}

/// Those of `ids` that are backfills.
pub async fn of_tasks(
    reads: &SqlitePool,
    now: i64,
    ids: &[TaskId],
) -> Result<Vec<Backfill>, StoreError> {
    let rows = sqlx::query(concat!(
        "select",
        backfill_columns!(),
        "from backfills b join tasks t on t.id = b.task_id
         where b.task_id in (select unhex(value) from json_each($2))"
    ))
    .bind(now)
    .bind(rows::id_list(ids.iter().map(|id| id.0)))
    .fetch_all(reads)
    .await?;
    rows.iter().map(backfill).collect()
}

fn backfill(row: &SqliteRow) -> Result<Backfill, StoreError> {
    Ok(Backfill {
        id: row.try_get("task_id")?,
        owner: row.try_get("owner")?,
        begun_at: rows::time(row.try_get("created_at")?)?,
        spec: row.try_get::<Json<BackfillSpec>, _>("spec")?.0,
        state: rows::name(row, "state")?,
        paused: row.try_get("paused")?,
        cancelled: row.try_get("cancelled")?,
        retrying: row.try_get("retrying")?,
        cursor: row.try_get("cursor")?,
        expected: row
            .try_get::<Option<i64>, _>("expected")?
            .map(|_| number(row, "expected"))
            .transpose()?,
        planned: number(row, "planned")?,
        skipped: row.try_get::<Json<BTreeMap<String, u64>>, _>("skipped")?.0,
        refused: number(row, "refused")?,
        succeeded: number(row, "succeeded")?,
        failed: number(row, "failed")?,
        cancelled_images: number(row, "cancelled_count")?,
        problem: row.try_get("problem")?,
        rested_seconds: row.try_get("rested")?,
    })
}

/// The backfill's document has changed.
async fn touch(conn: &mut SqliteConnection, now: i64, task: TaskId) -> Result<(), StoreError> {
    sqlx::query(
        "update tasks
         set version = version + 1, updated_at = $2,
             status = case status when 'queued' then 'running' else status end
         where id = $1",
    )
    .bind(task)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

async fn write_items(
    conn: &mut SqliteConnection,
    task: TaskId,
    items: &[Item],
) -> Result<(), StoreError> {
    for item in items {
        sqlx::query(
            "insert into backfill_items (task_id, item, outcome, reason, detail, source)
             values ($1, $2, $3, $4, $5, $6)
             on conflict (task_id, item) do update
             set outcome = excluded.outcome, reason = excluded.reason, detail = excluded.detail",
        )
        .bind(task)
        .bind(item.id)
        .bind(item.outcome.as_str())
        .bind(item.reason.as_deref())
        .bind(item.detail.as_deref())
        .bind(item.source.as_deref())
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

pub async fn pause(
    conn: &mut SqliteConnection,
    now: i64,
    task: TaskId,
    paused: bool,
) -> Result<bool, StoreError> {
    let found = sqlx::query(
        "update backfills set paused = $2
         where task_id = $1 and state <> 'ended' and not cancelled
           and (not $2 or state = 'walking' or retrying_since is not null)",
    )
    .bind(task)
    .bind(paused)
    .execute(&mut *conn)
    .await?;
    if found.rows_affected() == 0 {
        return Ok(false);
    }
    touch(conn, now, task).await?;
    Ok(true)
}

/// Cancels a backfill's walk. `None` if this is no backfill, `false` if it has ended; else the children
/// that are open.
pub async fn cancel(
    conn: &mut SqliteConnection,
    now: i64,
    task: TaskId,
) -> Result<Option<(bool, Vec<TaskId>)>, StoreError> {
    let state: Option<String> =
        sqlx::query_scalar("select state from backfills where task_id = $1")
            .bind(task)
            .fetch_optional(&mut *conn)
            .await?;
    match state.as_deref() {
        None => return Ok(None),
        Some("ended") => return Ok(Some((false, Vec::new()))),
        Some(_) => {}
    }
    sqlx::query(
        "update backfills set cancelled = 1, paused = 0, retrying_since = null, state = 'walked'
         where task_id = $1",
    )
    .bind(task)
    .execute(&mut *conn)
    .await?;
    touch(conn, now, task).await?;
    let open = sqlx::query_scalar(
        "select id from tasks
         where backfill_id = $1 and not tallied and status in ('queued', 'running') order by id",
    )
    .bind(task)
    .fetch_all(conn)
    .await?;
    Ok(Some((true, open)))
}

/// Opens failed backfills again, so that their children are tried again. Answers which of `ids` these are.
pub async fn reopen(
    conn: &mut SqliteConnection,
    now: i64,
    ids: &[TaskId],
) -> Result<Vec<TaskId>, StoreError> {
    let again: Vec<TaskId> = sqlx::query_scalar(
        "update backfills set state = 'walked', retrying_since = $2, paused = 0
         where task_id in (select unhex(value) from json_each($1)) and failed > 0
           and exists (select 1 from tasks t where t.id = task_id and t.status = 'failed')
         returning task_id",
    )
    .bind(rows::id_list(ids.iter().map(|id| id.0)))
    .bind(now)
    .fetch_all(&mut *conn)
    .await?;
    run_again(conn, now, &again).await?;
    Ok(again)
}

async fn run_again(
    conn: &mut SqliteConnection,
    now: i64,
    backfills: &[TaskId],
) -> Result<(), StoreError> {
    sqlx::query(
        "update tasks
         set status = 'running', finished_at = null, version = version + 1, updated_at = $2
         where id in (select unhex(value) from json_each($1))",
    )
    .bind(rows::id_list(backfills.iter().map(|id| id.0)))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

/// Takes those of `tasks` that are failed children out of the counts of their backfills: they are about to
/// be tried again.
pub async fn uncount(
    conn: &mut SqliteConnection,
    now: i64,
    tasks: &[TaskId],
) -> Result<(), StoreError> {
    let backfills: Vec<TaskId> = sqlx::query_scalar(
        "update tasks set tallied = 0
         where id in (select unhex(value) from json_each($1))
           and backfill_id is not null and tallied
         returning backfill_id",
    )
    .bind(rows::id_list(tasks.iter().map(|id| id.0)))
    .fetch_all(&mut *conn)
    .await?;
    for backfill in &backfills {
        sqlx::query(
            "update backfills
             set failed = failed - 1, state = case state when 'ended' then 'walked' else state end
             where task_id = $1",
        )
        .bind(backfill)
        .execute(&mut *conn)
        .await?;
    }
    run_again(conn, now, &backfills).await
}

/// Failed children of a backfill, oldest first.
pub async fn failed_children(
    reads: &SqlitePool,
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
    .bind(limit)
    .fetch_all(reads)
    .await?)
}

pub async fn retried(conn: &mut SqliteConnection, task: TaskId) -> Result<(), StoreError> {
    sqlx::query("update backfills set retrying_since = null where task_id = $1")
        .bind(task)
        .execute(conn)
        .await?;
    Ok(())
}

pub async fn report(
    reads: &SqlitePool,
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
    .bind(limit)
    .fetch_all(reads)
    .await?;
    rows.iter().map(|row| item(row, "item", "outcome")).collect()
}

/// A line of a report: `id` and `outcome` are the columns that say whose it is and how it ended.
fn item(row: &SqliteRow, id: &str, outcome: &str) -> Result<Item, StoreError> {
    Ok(Item {
        id: row.try_get(id)?,
        outcome: rows::name(row, outcome)?,
        reason: row.try_get("reason")?,
        detail: row.try_get("detail")?,
        source: row.try_get("source")?,
    })
}
