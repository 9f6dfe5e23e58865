//! Responses with a task: reading it, waiting for its end, its headers.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use safelight_domain::{Task, TaskId};

use super::documents::TaskDocument;
use crate::{
    auth::Caller,
    http::{
        draining::Draining,
        extract::PathId,
        prefer::{PREFERENCE_APPLIED, Wait},
        problem::Problem,
    },
    state::ApiState,
};

/// Seconds that a client should wait before it asks again.
const POLL_SECONDS: HeaderValue = HeaderValue::from_static("1");

/// The task, or the problem that there is none for this caller.
pub async fn load(state: &ApiState, caller: &Caller, id: TaskId) -> Result<Task, Problem> {
    let task = state.store.task(id).await?.filter(|task| caller.may_see(&task.owner));
    task.ok_or_else(|| TaskId::not_found(id))
}

/// Reads a task again that the caller may see.
pub async fn reload(state: &ApiState, id: TaskId) -> Result<Task, Problem> {
    state.store.task(id).await?.ok_or_else(|| TaskId::not_found(id))
}

/// Waits until the task is final, the time is over, or the server drains; then reads the task. A problem
/// if the caller's key is no longer valid.
pub async fn wait_until_final(
    state: &ApiState,
    caller: &Caller,
    task: Task,
    wait: Wait,
    Draining(draining): &Draining,
) -> Result<Task, Problem> {
    if task.status.is_final() || wait.duration().is_zero() {
        return Ok(task);
    }
    let id = task.id;
    let mut watcher = state.watch.watch(id, &caller.into())?;
    let session = state.session_guards.guard(caller);
    // Thousands may be waiting here: keep nothing that can be read again.
    drop(task);
    tokio::select! {
        () = watcher.is_final() => {}
        () = tokio::time::sleep(wait.duration()) => {}
        () = draining.cancelled() => {}
        problem = session.ended() => return Err(problem),
    }
    drop(watcher);
    reload(state, id).await
}

/// The same if the client asked to wait. If the wait fails, the task as it was.
pub async fn wait_or_keep(
    state: &ApiState,
    caller: &Caller,
    task: Task,
    wait: Option<Wait>,
    draining: &Draining,
) -> Task {
    let Some(wait) = wait else { return task };
    match wait_until_final(state, caller, task.clone(), wait, draining).await {
        Ok(task) => task,
        Err(_) => task,
    }
}

/// 202 with the task.
pub fn accepted(state: &ApiState, task: &Task, wait: Option<Wait>) -> Response {
    let document = Json(TaskDocument::new(task, &state.presets));
    let mut response = (StatusCode::ACCEPTED, document).into_response();
    add_progress_headers(&mut response, task, wait);
    response
}

/// 202 with the task and its `Location`.
pub fn created(state: &ApiState, task: &Task, wait: Option<Wait>) -> Result<Response, Problem> {
    let location = HeaderValue::from_str(&format!("/v1/tasks/{}", task.id))
        .map_err(|error| Problem::internal(&error))?;
    let mut response = accepted(state, task, wait);
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

/// `Retry-After` until the task is final, `Preference-Applied` if the client asked to wait.
pub fn add_progress_headers(response: &mut Response, task: &Task, wait: Option<Wait>) {
    let headers = response.headers_mut();
    if !task.status.is_final() {
        headers.insert(header::RETRY_AFTER, POLL_SECONDS);
    }
    headers.extend(wait.and_then(Wait::applied).map(|value| (PREFERENCE_APPLIED, value)));
}
