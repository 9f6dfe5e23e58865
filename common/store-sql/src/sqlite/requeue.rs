//! Queuing failed jobs again.

use safelight_domain::{JobId, TaskId};
use safelight_store::StoreError;
use sqlx::SqliteConnection;

use super::{
    dialect::{any_of, ids},
    notices::{insert_notices, replace_notices},
    rows::column,
};

/// Queues the failed jobs of those of `tasks` that have failed; returns these tasks. Those of discarded images are
/// left out, unless they are the deletion.
pub async fn requeue_failed(
    conn: &mut SqliteConnection,
    now: i64,
    tasks: &[TaskId],
) -> Result<Vec<TaskId>, StoreError> {
    let query = sqlx::query_scalar(concat!(
        "select t.id from tasks t left join images i on i.id = t.image_id
         where t.id ",
        any_of!("$1"),
        " and t.status = 'failed' and (i.discarded_at is null or t.kind = 'delete')
           and exists (select 1 from jobs j where j.task_id = t.id and j.status = 'failed')"
    ));
    let tasks: Vec<TaskId> =
        query.bind(ids(tasks.iter().map(|id| id.0))).fetch_all(&mut *conn).await?;
    let list = ids(tasks.iter().map(|id| id.0));
    // The fence continues to grow. All attempts are available again because the earlier ones count as
    // released.
    let jobs = sqlx::query(concat!(
        "update jobs
         set status = 'queued', released = fence, run_at = $2, waiting_since = $2,
             error_code = null, error_message = null, updated_at = $2
         where task_id ",
        any_of!("$1"),
        " and status = 'failed' returning id"
    ));
    let jobs = jobs.bind(list.clone()).bind(now).fetch_all(&mut *conn).await?;
    let jobs: Vec<JobId> = column(&jobs, "id")?;
    sqlx::query(concat!(
        insert_notices!(),
        "run_at from jobs where id ",
        any_of!("$3"),
        replace_notices!(),
        "; update tasks
         set jobs_failed = 0, status = 'queued', finished_at = null, version = version + 1,
             updated_at = $2
         where id ",
        any_of!("$1")
    ))
    .bind(list)
    .bind(now)
    .bind(ids(jobs.iter().map(|id| id.0)))
    .execute(conn)
    .await?;
    Ok(tasks)
}
