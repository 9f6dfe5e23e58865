//! Cancelling the open jobs of tasks.

use std::collections::HashMap;

use safelight_domain::TaskId;
use safelight_store::StoreError;
use sqlx::{SqliteConnection, types::Json};

use super::{
    dialect::{any_of, ids},
    finish::finish_tasks,
};

/// Cancels all open jobs of `tasks`; returns the tasks that had any. The jobs of deletions continue.
pub async fn cancel_jobs(
    conn: &mut SqliteConnection,
    now: i64,
    tasks: &[TaskId],
) -> Result<Vec<TaskId>, StoreError> {
    let query = sqlx::query_scalar(concat!(
        "update jobs set status = 'cancelled', updated_at = $2
         where task_id ",
        any_of!("$1"),
        " and status in ('queued', 'running') and kind <> 'delete' returning task_id"
    ));
    let of_jobs: Vec<TaskId> =
        query.bind(ids(tasks.iter().map(|id| id.0))).bind(now).fetch_all(&mut *conn).await?;
    let mut counts = HashMap::<TaskId, u32>::new();
    for task in of_jobs {
        *counts.entry(task).or_default() += 1;
    }
    let list: Vec<_> = counts.iter().map(|(id, jobs)| (id.0.simple().to_string(), jobs)).collect();
    sqlx::query(concat!(
        "delete from outbox where job_id in (
             select id from jobs
             where task_id in (select unhex(value ->> 0) from json_each($1))); ",
        finish_tasks!(
            "select unhex(value ->> 0) as task_id, 0 as succeeded, 0 as failed,
                    value ->> 1 as cancelled, 1 as changes
             from json_each($1)",
            "$2"
        )
    ))
    .bind(Json(list))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(counts.into_keys().collect())
}
