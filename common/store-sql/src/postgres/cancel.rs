//! Cancelling the open jobs of tasks.

use safelight_domain::TaskId;
use safelight_store::StoreError;
use sqlx::PgConnection;

use super::{
    dialect::{Now, ids},
    finish::finish_tasks,
};

/// Jobs are locked before their task and in one order, as everywhere. If one of them is settled meanwhile,
/// that comes first: the job is no longer open then, and the counters show it.
const CANCEL: &str = concat!(
    "with open as (
         select id from jobs
         where task_id = any($1) and status in ('queued', 'running') and kind <> 'delete'
         order by id for update),
     job as (
         update jobs j set status = 'cancelled', updated_at = now()
         from open where j.id = open.id and j.status in ('queued', 'running')
         returning j.id, j.task_id, j.status),
     notice as (delete from outbox o using job where o.job_id = job.id), ",
    finish_tasks!("1"),
    " select task_id from counted"
);

/// Cancels all open jobs of `tasks`; returns the tasks that had any. The jobs of deletions continue.
pub async fn cancel_jobs(
    conn: &mut PgConnection,
    _: Now,
    tasks: &[TaskId],
) -> Result<Vec<TaskId>, StoreError> {
    let query = sqlx::query_scalar(CANCEL).bind(ids(tasks.iter().map(|id| id.0)));
    Ok(query.fetch_all(conn).await?)
}
