//! Ending tasks. The one place where the end of a job is counted on its task.
//!
//! One task ends elsewhere: that of a backfill, which has no jobs to count, in `end_if_done` of `results.rs`.

/// Counts ended jobs on their tasks, and ends tasks whose last job has ended. `$ended` is a query for `task_id`,
/// `succeeded`, `failed` and `cancelled` of each task, and for `changes`, by how much its version grows; `$time` is the
/// parameter for the time.
macro_rules! finish_tasks {
    ($ended:expr, $time:literal) => {
        concat!(
            "update tasks
             set jobs_succeeded = jobs_succeeded + ended.succeeded,
                 jobs_failed = jobs_failed + ended.failed,
                 jobs_cancelled = jobs_cancelled + ended.cancelled,
                 version = version + ended.changes, updated_at = ",
            $time,
            ",
                 status = case
                     when jobs_succeeded + jobs_failed + jobs_cancelled
                          + ended.succeeded + ended.failed + ended.cancelled < jobs_total
                          then status
                     when jobs_cancelled + ended.cancelled > 0 then 'cancelled'
                     when jobs_failed + ended.failed > 0 then 'failed'
                     else 'succeeded' end,
                 finished_at = case
                     when jobs_succeeded + jobs_failed + jobs_cancelled
                          + ended.succeeded + ended.failed + ended.cancelled < jobs_total
                          then finished_at
                     else ",
            $time,
            " end
             from (",
            $ended,
            ") ended
             where tasks.id = ended.task_id;"
        )
    };
}

pub(super) use finish_tasks;
