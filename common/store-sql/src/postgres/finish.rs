//! Ending tasks. The one place where the end of a job is counted on its task.
//!
//! One task ends elsewhere: that of a backfill, which has no jobs to count, in `end_if_done` of `results.rs`.

/// Common table expressions that count the jobs of the expression `job` (its `task_id` and final `status`; others
/// do not count) on their tasks, and end tasks whose last job has ended. `$changes` is how much the version of a
/// task `c` grows.
///
/// The rows of tasks are locked after those of jobs and in one order, as everywhere. Two jobs of a task may
/// end concurrently: the second statement waits for the task's row and then computes from the counters that
/// the first has written (READ COMMITTED evaluates the row again), so exactly one of them sees the last job
/// end. Two jobs of one statement are counted together.
macro_rules! finish_tasks {
    ($changes:literal) => {
        concat!(
            "counted as (
                 select task_id, count(*)::int as jobs,
                        count(*) filter (where status = 'succeeded')::int as succeeded,
                        count(*) filter (where status = 'failed')::int as failed,
                        count(*) filter (where status = 'cancelled')::int as cancelled,
                        count(*) filter (where status in ('succeeded', 'failed', 'cancelled'))::int
                            as ended
                 from job group by task_id),
             locked as (
                 select id from tasks where id = any(array(select task_id from counted))
                 order by id for no key update),
             task as (
                 update tasks t
                 set jobs_succeeded = jobs_succeeded + c.succeeded,
                     jobs_failed = jobs_failed + c.failed,
                     jobs_cancelled = jobs_cancelled + c.cancelled,
                     version = version + ",
            $changes,
            ", updated_at = now(),
                     status = case
                         when jobs_succeeded + jobs_failed + jobs_cancelled + c.ended < jobs_total
                              then t.status
                         when jobs_cancelled + c.cancelled > 0 then 'cancelled'
                         when jobs_failed + c.failed > 0 then 'failed'
                         else 'succeeded' end,
                     finished_at = case
                         when jobs_succeeded + jobs_failed + jobs_cancelled + c.ended < jobs_total
                              then finished_at
                         else now() end
                 from counted c
                 where t.id = any(array(select id from locked)) and t.id = c.task_id)"
        )
    };
}

pub(super) use finish_tasks;
