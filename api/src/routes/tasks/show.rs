//! One task: read once, or held until it is final.

use axum::{extract::State, http::HeaderMap, response::Response};
use safelight_domain::TaskId;

use crate::{
    auth::Caller,
    http::{
        conditional::conditional, draining::Draining, extract::Id, prefer::Wait, problem::Problem,
        responses::problem_responses,
    },
    routes::{
        documents::TaskDocument,
        task_responses::{add_progress_headers, load, wait_until_final},
    },
    state::ApiState,
};

problem_responses! {
    TaskProblems: InvalidHeader, TaskNotFound, TooManyWaiting, DatabaseUnavailable;
}

/// Where a task stands.
///
/// Poll it, or ask with `Prefer: wait=N` for an answer that is held until the task is final.
#[utoipa::path(
    get, path = "/v1/tasks/{id}", operation_id = "get_task", tag = "tasks",
    params(
        ("id" = TaskId, Path, description = "The task's id"),
        ("prefer" = Option<String>, Header, description = "`wait=N`: hold the answer until the task is final, at most N seconds (0–60)", example = "wait=10"),
        ("if-none-match" = Option<String>, Header, description = "The `ETag` of the document that the client has"),
    ),
    responses(
        (status = 200, description = "The task", body = TaskDocument, headers(
            ("ETag" = String, description = "Names this state of the document"),
            ("Retry-After" = u32, description = "Seconds until asking again makes sense; absent once the task is final"),
            ("Preference-Applied" = String, description = "`wait=N` if the answer was held on request"),
        )),
        (status = 304, description = "The document is still the one that the client has"),
        TaskProblems,
    ),
)]
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    draining: Draining,
    Id(id): Id<TaskId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wait = Wait::from_headers(&headers)?;
    let mut task = load(&state, &caller, id).await?;
    if let Some(wait) = wait {
        task = wait_until_final(&state, &caller, task, wait, &draining).await?;
    }
    let mut response = conditional(&TaskDocument::new(&task, &state.presets), &headers)?;
    add_progress_headers(&mut response, &task, wait);
    Ok(response)
}
