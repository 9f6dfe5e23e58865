//! Tasks cancelled and retried by hand.

use axum::{Json, extract::State, response::Response};
use safelight_domain::{Scope, Status, Task, TaskId, TaskKind};
use safelight_store::TaskFilter;
use serde::Serialize;
use utoipa::ToSchema;

use super::filter::{self, FilterParams};
use crate::{
    auth::{Caller, scope_missing},
    http::{
        extract::{Id, Params, invalid_query},
        pagination::{Cursor, page},
        problem::{Problem, ProblemCode},
        responses::{ListProblems, problem_responses},
    },
    routes::{
        documents::TaskDocument,
        task_responses::{accepted, load, reload},
    },
    state::ApiState,
};

problem_responses! {
    /// Of cancelling a task.
    CancelProblems: TaskNotFound, TaskEnded, NotCancellable, DatabaseUnavailable;
    /// Of retrying a task.
    RetryProblems: TaskNotFound, TaskNotFailed, TaskDiscarded, DatabaseUnavailable;
}

/// Cancel a task.
///
/// Queued jobs end immediately. Running jobs are stopped within seconds, and their results are discarded. The
/// image's stored bytes are removed.
#[utoipa::path(
    post, path = "/v1/tasks/{id}/cancel", operation_id = "cancel_task", tag = "tasks",
    params(("id" = TaskId, Path, description = "The task's id")),
    responses(
        (status = 202, description = "The cancelled task", body = TaskDocument),
        CancelProblems,
    ),
)]
pub async fn cancel(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id<TaskId>,
) -> Result<Response, Problem> {
    let task = load(&state, &caller, id).await?;
    check_kind(&caller, &task)?;
    let cancelled = state.store.cancel(id).await?;
    let task = reload(&state, id).await?;
    state.delivery.forget_image_of(&task);
    // A repeated request, perhaps after a lost response, finds what the client wants.
    if task.kind == TaskKind::Delete && !task.status.is_final() {
        return Err(Problem::new(
            ProblemCode::NotCancellable,
            "The image is deleted, and what is left of it is being removed.",
        ));
    }
    if !cancelled && task.status != Status::Cancelled {
        return Err(Problem::new(
            ProblemCode::TaskEnded,
            format!("The task has ended as `{}`; there is nothing to cancel.", task.status),
        ));
    }
    Ok(accepted(&state, &task, None))
}

/// Retry a failed task.
///
/// The failed jobs are queued again and get their full number of attempts. Succeeded jobs are not repeated.
#[utoipa::path(
    post, path = "/v1/tasks/{id}/retry", operation_id = "retry_task", tag = "tasks",
    params(("id" = TaskId, Path, description = "The task's id")),
    responses(
        (status = 202, description = "The task, which is queued again", body = TaskDocument),
        RetryProblems,
    ),
)]
pub async fn retry(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id<TaskId>,
) -> Result<Response, Problem> {
    let task = load(&state, &caller, id).await?;
    check_kind(&caller, &task)?;
    let retried = state.store.retry(&[id]).await?;
    state.outbox_signal.notify();
    let task = reload(&state, id).await?;
    if retried.is_empty() {
        return Err(not_retried(&task));
    }
    Ok(accepted(&state, &task, None))
}

/// Whether the image of a task was discarded; the deletion of an image is not such a task.
fn is_discarded(task: &Task) -> bool {
    task.kind != TaskKind::Delete && task.image.as_ref().is_some_and(|image| image.discarded)
}

/// Backfills are for operators alone.
fn check_kind(caller: &Caller, task: &Task) -> Result<(), Problem> {
    if task.kind == TaskKind::Backfill && !caller.has(Scope::Admin) {
        Err(scope_missing(Scope::Admin, &[Scope::Admin]))
    } else {
        Ok(())
    }
}

fn not_retried(task: &Task) -> Problem {
    if is_discarded(task) {
        return Problem::new(
            ProblemCode::TaskDiscarded,
            "The image was cancelled or deleted, its bytes are gone; upload the picture again.",
        );
    }
    let nothing_failed = task.backfill.as_ref().is_some_and(|backfill| backfill.failed == 0);
    if task.status == Status::Failed && nothing_failed {
        return Problem::new(
            ProblemCode::TaskNotFailed,
            "None of its images has failed. To look again at what it could not import or count, \
             start another backfill.",
        );
    }
    if task.status == Status::Failed {
        return Problem::new(
            ProblemCode::TaskNotFailed,
            "The task was being retried at that moment, and has failed again.",
        );
    }
    Problem::new(
        ProblemCode::TaskNotFailed,
        format!("The task is `{}`; only failed tasks can be retried.", task.status),
    )
}

/// Failed tasks that were retried, or in a dry run would be.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RetriedTasks)]
pub struct RetriedDocument {
    /// Their ids, newest first.
    pub tasks: Vec<TaskId>,
    /// Whether this was a dry run.
    pub dry_run: bool,
    /// The `cursor` of the next page; null on the last page.
    pub next_cursor: Option<String>,
}

/// Retry many failed tasks.
///
/// Retries one page of the failed tasks that match the filter, newest first; follow `next_cursor` for the
/// next page. Skips tasks whose image was cancelled or deleted.
#[utoipa::path(
    post, path = "/v1/tasks/retry", operation_id = "retry_tasks", tag = "tasks",
    params(
        FilterParams,
        ("all" = Option<bool>, Query, description = "Must be true if there is no filter"),
        ("dry_run" = Option<bool>, Query, description = "Only report which tasks would be retried"),
        ("limit" = Option<u32>, Query, description = "Maximum number of tasks to examine; default 50", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page"),
    ),
    responses(
        (status = 200, description = "The tasks that were queued again", body = RetriedDocument),
        ListProblems,
    ),
)]
pub async fn retry_many(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<RetriedDocument>, Problem> {
    let mut filter = filter::from_params(&caller, &mut params)?;
    let all = params.parse("all")?.unwrap_or(false);
    let of_all = TaskFilter { owner: caller.sees().cloned(), ..TaskFilter::default() };
    if filter == of_all && !all {
        return Err(invalid_query("all", "must be true where there is no filter"));
    }
    if filter.status.is_some_and(|status| status != Status::Failed) {
        return Err(invalid_query("status", "only failed tasks can be tried again"));
    }
    filter.status = Some(Status::Failed);
    let dry_run = params.parse("dry_run")?.unwrap_or(false);
    let request = page::<TaskId>(&mut params)?;
    params.finish()?;
    let store = &state.store;
    let page = store.list_tasks(&filter, &request).await?;
    let has_bytes = |task: &&Task| !is_discarded(task);
    let mut tasks: Vec<TaskId> = page.tasks.iter().filter(has_bytes).map(|task| task.id).collect();
    if !dry_run {
        let retried = store.retry(&tasks).await?;
        tasks.retain(|id| retried.contains(id));
        state.outbox_signal.notify();
    }
    Ok(Json(RetriedDocument { tasks, dry_run, next_cursor: page.next.map(Cursor::encode) }))
}
