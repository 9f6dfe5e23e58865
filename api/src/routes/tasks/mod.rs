//! Tasks: read once, held until final, as events, as lists; cancelled and tried again by hand.

pub mod control;
pub mod events;
pub mod filter;
pub mod list;

pub use super::documents::task as document;

use axum::{
    Extension,
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use safelight_domain::{Task, TaskId};

use crate::{
    access::{Caller, Right},
    extract::{Id, PathId},
    openapi::TaskProblems,
    prefer::{PREFERENCE_APPLIED, Wait},
    problem::{Problem, ProblemCode},
    state::{ApiState, Draining},
    watch::TooManyWatchers,
};
use document::{TaskDocument, conditional};

/// Seconds that a client should wait before it asks again.
const POLL_SECONDS: HeaderValue = HeaderValue::from_static("1");

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
    draining: Option<Extension<Draining>>,
    Id(id): Id<TaskId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wait = Wait::from_headers(&headers)?;
    let mut task = load(&state, &caller, id).await?;
    if let Some(wait) = wait {
        task = wait_until_final(&state, &caller, task, wait, draining).await?;
    }
    let mut response = conditional(&TaskDocument::new(&task, &state.presets), &headers)?;
    add_progress_headers(&mut response, &task, wait);
    Ok(response)
}

/// The task, or the problem that there is none for this caller.
pub async fn load(state: &ApiState, caller: &Caller, id: TaskId) -> Result<Task, Problem> {
    let task = state.services.store.task(id).await?.filter(|task| caller.may_see(&task.owner));
    task.ok_or_else(|| TaskId::not_found(id))
}

/// A task again, of which the caller has seen that it may.
pub async fn reload(state: &ApiState, id: TaskId) -> Result<Task, Problem> {
    state.services.store.task(id).await?.ok_or_else(|| TaskId::not_found(id))
}

/// Holds until the task is final, the time is over, or the server wants to end; then the task as
/// it is. A problem if the caller's key is good no more.
pub async fn wait_until_final(
    state: &ApiState,
    caller: &Caller,
    task: Task,
    wait: Wait,
    draining: Option<Extension<Draining>>,
) -> Result<Task, Problem> {
    if task.status.is_final() || wait.duration().is_zero() {
        return Ok(task);
    }
    let id = task.id;
    let mut watcher = state.watch.watch(id)?;
    let right = Right::of(state, caller);
    // Thousands may be waiting here: keep nothing that can be read again.
    drop(task);
    let Draining(draining) = draining.map(|Extension(draining)| draining).unwrap_or_default();
    tokio::select! {
        () = watcher.is_final() => {}
        () = tokio::time::sleep(wait.duration()) => {}
        () = draining.cancelled() => {}
        problem = right.lapsed() => return Err(problem),
    }
    drop(watcher);
    reload(state, id).await
}

/// `Retry-After` until the task is final, `Preference-Applied` if the client asked to wait.
pub fn add_progress_headers(response: &mut Response, task: &Task, wait: Option<Wait>) {
    let headers = response.headers_mut();
    if !task.status.is_final() {
        headers.insert(header::RETRY_AFTER, POLL_SECONDS);
    }
    headers.extend(wait.and_then(Wait::applied).map(|value| (PREFERENCE_APPLIED, value)));
}

impl From<TooManyWatchers> for Problem {
    fn from(_: TooManyWatchers) -> Self {
        Self::new(ProblemCode::TooManyWaiting, "This node holds as many answers as it can.")
            .hint("poll without `Prefer: wait`")
    }
}
