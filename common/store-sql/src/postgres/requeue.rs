//! Queuing failed jobs again.

use safelight_domain::TaskId;
use safelight_store::StoreError;
use sqlx::PgConnection;

use super::{
    dialect::{Now, ids},
    notices::{insert_notices, replace_notices},
};

/// The fence continues to grow. All attempts are available again because the earlier ones count as released.
const REQUEUE: &str = concat!(
    "with job as (
        update jobs j
        set status = 'queued', released = j.fence, run_at = now(), waiting_since = now(),
            error_code = null, error_message = null, updated_at = now()
        from tasks t left join images i on i.id = t.image_id
        where t.id = any($1) and t.status = 'failed'
          and (i.discarded_at is null or t.kind = 'delete')
          and j.task_id = t.id and j.status = 'failed'
        returning j.id, j.task_id, j.kind, j.lane, j.share, j.fence),
    notice as (",
    insert_notices!(),
    "now() from job",
    replace_notices!(),
    "),
    counted as (select task_id, count(*)::int as jobs from job group by task_id)
    update tasks t
    set jobs_failed = jobs_failed - counted.jobs, status = 'queued', finished_at = null,
        version = version + 1, updated_at = now()
    from counted where t.id = counted.task_id
    returning t.id"
);

/// Queues the failed jobs of those of `tasks` that have failed; returns these tasks. Those of discarded images are
/// left out, unless they are the deletion.
pub async fn requeue_failed(
    conn: &mut PgConnection,
    _: Now,
    tasks: &[TaskId],
) -> Result<Vec<TaskId>, StoreError> {
    let query = sqlx::query_scalar(REQUEUE).bind(ids(tasks.iter().map(|id| id.0)));
    Ok(query.fetch_all(conn).await?)
}
