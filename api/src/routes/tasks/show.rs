//! One task: read once, or held until it is final.

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, header::IF_NONE_MATCH},
    response::Response,
};
use safelight_domain::TaskId;

use crate::{
    auth::Caller,
    http::{
        conditional::conditional, draining::Draining, extract::Id, prefer::Wait, problem::Problem,
        responses::problem_responses, turns::Turn,
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

/// Get a task.
///
/// Poll the task, or send `Prefer: wait=N` to wait until it has ended.
#[utoipa::path(
    get, path = "/v1/tasks/{id}", operation_id = "get_task", tag = "tasks",
    params(
        ("id" = TaskId, Path, description = "The task's id"),
        ("prefer" = Option<String>, Header, description = "`wait=N`: wait for the task to end, at most N seconds (0–60)", example = "wait=10"),
        ("if-none-match" = Option<String>, Header, description = "The `ETag` of the client's copy of the document"),
    ),
    responses(
        (status = 200, description = "The task", body = TaskDocument, headers(
            ("ETag" = String, description = "Identifies this version of the document"),
            ("Retry-After" = u32, description = "Seconds until the client should poll again; absent if the task has ended"),
            ("Preference-Applied" = String, description = "`wait=N` if the response waited for the task"),
        )),
        (status = 304, description = "The client's copy is current"),
        TaskProblems,
    ),
)]
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    draining: Draining,
    turn: Turn,
    Id(id): Id<TaskId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wait = Wait::from_headers(&headers);
    let known = if_none_match(&headers);
    drop(headers);
    let mut task = load(&state, &caller, id).await?;
    turn.end();
    if let Some(wait) = wait {
        task = wait_until_final(&state, &caller, task, wait, &draining).await?;
    }
    let mut response = conditional(&TaskDocument::new(&task, &state.presets), &known)?;
    add_progress_headers(&mut response, &task, wait);
    Ok(response)
}

/// A copy of these headers alone: thousands of clients may wait, and a head has up to 16 KiB.
fn if_none_match(headers: &HeaderMap) -> HeaderMap {
    let copy = |value: &HeaderValue| HeaderValue::from_bytes(value.as_bytes()).ok();
    let values = headers.get_all(IF_NONE_MATCH).iter().filter_map(copy);
    values.map(|value| (IF_NONE_MATCH, value)).collect()
}
