//! Removing tasks that ended long ago.

use std::time::Duration;

use safelight_domain::TaskId;
use safelight_store::StoreError;
use uuid::Uuid;

use super::{
    dialect::{Conn, ago, any_of, ids, lock_rows, span},
    rows::column,
    store::SqlStore,
};
use crate::convert::id_of_age;

/// Removes about `limit` rows of old tasks; see [`Control::prune_tasks`](safelight_store::Control::prune_tasks).
pub async fn prune_tasks(store: &SqlStore, age: Duration, limit: u32) -> Result<u64, StoreError> {
    // Failed tasks stay, except backfills: they contain the reason, and a person can retry them.
    let query = sqlx::query(concat!(
        "select id from tasks t
         where (status in ('succeeded', 'cancelled') or status = 'failed' and kind = 'backfill')
           and id < $1 and finished_at <= ",
        ago!("$2", "$4"),
        " and not exists (select 1 from idempotency_keys k where k.task_id = t.id)
           and not exists (select 1 from images i
                           where i.id = t.image_id and i.discarded_at is not null
                             and i.removed_at is null)
         order by id limit $3"
    ));
    let query = query.bind(id_of_age(age)).bind(span(age)).bind(i64::from(limit));
    let old: Vec<TaskId> = column(&store.fetch_all(store.at_now(query)).await?, "id")?;
    if old.is_empty() {
        return Ok(0);
    }
    store.transaction(move |conn, _| Box::pin(remove_old(conn, old, limit))).await
}

async fn remove_old(conn: &mut Conn, old: Vec<TaskId>, limit: u32) -> Result<u64, StoreError> {
    // A failed backfill may have been started again meanwhile.
    let query = sqlx::query_scalar(concat!(
        "select id from tasks where finished_at is not null and id ",
        any_of!("$1"),
        " order by id ",
        lock_rows!("for update skip locked")
    ));
    let old: Vec<TaskId> = query.bind(ids(old.iter().map(|id| id.0))).fetch_all(&mut *conn).await?;
    let tasks = || ids(old.iter().map(|id| id.0));
    // A backfill may have many lines and failed children: those are removed first, `limit` at a time.
    let children = sqlx::query(concat!(
        "update tasks set backfill_id = null where id in (
             select id from tasks where backfill_id ",
        any_of!("$1"),
        " limit $2)"
    ));
    let children = children.bind(tasks()).bind(i64::from(limit)).execute(&mut *conn).await?;
    let lines = sqlx::query(concat!(
        "delete from backfill_items where (task_id, item) in (
             select task_id, item from backfill_items where task_id ",
        any_of!("$1"),
        " limit $2)"
    ));
    let lines = lines.bind(tasks()).bind(i64::from(limit)).execute(&mut *conn).await?;
    let removed = children.rows_affected() + lines.rows_affected();
    if removed == 0 {
        sqlx::query(concat!("delete from backfills where task_id ", any_of!("$1")))
            .bind(tasks())
            .execute(&mut *conn)
            .await?;
        remove(conn, old.iter().map(|id| id.0)).await?;
    }
    Ok(removed.max(old.len() as u64))
}

/// Removes tasks with their jobs.
pub async fn remove(
    conn: &mut Conn,
    tasks: impl IntoIterator<Item = Uuid>,
) -> Result<(), StoreError> {
    let tasks = ids(tasks);
    for statement in [
        concat!(
            "delete from outbox where job_id in (select id from jobs where task_id ",
            any_of!("$1"),
            ")"
        ),
        concat!("delete from jobs where task_id ", any_of!("$1")),
        concat!("delete from tasks where id ", any_of!("$1")),
    ] {
        sqlx::query(statement).bind(tasks.clone()).execute(&mut *conn).await?;
    }
    Ok(())
}
