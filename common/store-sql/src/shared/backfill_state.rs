//! Changing the state of backfills, within a transaction.

use std::collections::BTreeMap;

use safelight_domain::TaskId;
use safelight_store::{NewBackfill, StoreError};
use sqlx::{Row, types::Json};

use super::{
    create::create_tasks,
    dialect::{Conn, Now, any_of, bind_now, ids, lock_rows, now},
    rows::column,
};
use crate::{convert::to_i64, new_task::NewTask};

/// Creates a backfill; see [`Backfills::create_backfill`](safelight_store::Backfills::create_backfill).
pub async fn create(conn: &mut Conn, now: Now, new: &NewBackfill) -> Result<bool, StoreError> {
    create_tasks(conn, now, &[NewTask::of_backfill(new)]).await?;
    sqlx::query(
        "insert into backfills (task_id, spec, cursor)
         select id, $2, $3 from tasks where id = $1 and kind = 'backfill'
         on conflict (task_id) do nothing",
    )
    .bind(new.task)
    .bind(Json(&new.spec))
    .bind(new.spec.first_cursor())
    .execute(&mut *conn)
    .await?;
    let query = sqlx::query(
        "select 1 from backfills b join tasks t on t.id = b.task_id
         where b.task_id = $1 and t.owner = $2 and b.spec = $3",
    );
    let query = query.bind(new.task).bind(&new.owner).bind(Json(&new.spec));
    Ok(query.fetch_optional(conn).await?.is_some())
}

/// Pauses or resumes a backfill; see [`Backfills::pause_backfill`](safelight_store::Backfills::pause_backfill).
pub async fn pause(
    conn: &mut Conn,
    now: Now,
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

/// Records that the backfill's document has changed.
pub async fn touch(conn: &mut Conn, now: Now, task: TaskId) -> Result<(), StoreError> {
    let query = sqlx::query(concat!(
        "update tasks
         set version = version + 1, updated_at = ",
        now!("$2"),
        ", status = case status when 'queued' then 'running' else status end
         where id = $1"
    ));
    bind_now(query.bind(task), now).execute(conn).await?;
    Ok(())
}

/// Cancels a backfill's walk. Returns `None` if this is no backfill, `false` if it has ended, and its open
/// children.
pub async fn cancel(
    conn: &mut Conn,
    now: Now,
    task: TaskId,
) -> Result<Option<(bool, Vec<TaskId>)>, StoreError> {
    let query = sqlx::query(concat!(
        "select state from backfills where task_id = $1 ",
        lock_rows!("for update")
    ));
    let row = query.bind(task).fetch_optional(&mut *conn).await?;
    let Some(row) = row else { return Ok(None) };
    if row.try_get::<&str, _>("state")? == "ended" {
        return Ok(Some((false, Vec::new())));
    }
    sqlx::query(
        "update backfills
         set cancelled = true, paused = false, retrying_since = null, state = 'walked'
         where task_id = $1",
    )
    .bind(task)
    .execute(&mut *conn)
    .await?;
    touch(conn, now, task).await?;
    let open = sqlx::query_scalar(
        "select id from tasks
         where backfill_id = $1 and not tallied and status in ('queued', 'running') order by id",
    );
    Ok(Some((true, open.bind(task).fetch_all(conn).await?)))
}

/// Starts those of `tasks` that are failed backfills again, so that their failed children are queued again.
/// Returns these backfills.
pub async fn reopen(
    conn: &mut Conn,
    now: Now,
    tasks: &[TaskId],
) -> Result<Vec<TaskId>, StoreError> {
    let query = sqlx::query(concat!(
        "update backfills set state = 'walked', retrying_since = ",
        now!("$2"),
        ", paused = false
         where task_id ",
        any_of!("$1"),
        " and failed > 0
           and exists (select 1 from tasks t where t.id = task_id and t.status = 'failed')
         returning task_id"
    ));
    let query = query.bind(ids(tasks.iter().map(|id| id.0)));
    let reopened = column(&bind_now(query, now).fetch_all(&mut *conn).await?, "task_id")?;
    run_again(conn, now, &reopened).await?;
    Ok(reopened)
}

/// Takes those of `tasks` that are failed children out of the counts of their backfills: they are about to be
/// retried.
pub async fn uncount(conn: &mut Conn, now: Now, tasks: &[TaskId]) -> Result<(), StoreError> {
    let query = sqlx::query_scalar(concat!(
        "update tasks set tallied = false
         where id ",
        any_of!("$1"),
        " and backfill_id is not null and tallied
         returning backfill_id"
    ));
    let children: Vec<TaskId> =
        query.bind(ids(tasks.iter().map(|id| id.0))).fetch_all(&mut *conn).await?;
    let mut backfills = BTreeMap::<TaskId, u64>::new();
    for backfill in children {
        *backfills.entry(backfill).or_default() += 1;
    }
    for (backfill, children) in &backfills {
        sqlx::query(
            "update backfills
             set failed = failed - $2,
                 state = case state when 'ended' then 'walked' else state end
             where task_id = $1",
        )
        .bind(backfill)
        .bind(to_i64(*children))
        .execute(&mut *conn)
        .await?;
    }
    run_again(conn, now, &backfills.into_keys().collect::<Vec<_>>()).await
}

async fn run_again(conn: &mut Conn, now: Now, backfills: &[TaskId]) -> Result<(), StoreError> {
    let query = sqlx::query(concat!(
        "update tasks
         set status = 'running', finished_at = null, version = version + 1, updated_at = ",
        now!("$2"),
        " where id ",
        any_of!("$1")
    ));
    let query = query.bind(ids(backfills.iter().map(|id| id.0)));
    bind_now(query, now).execute(conn).await?;
    Ok(())
}
