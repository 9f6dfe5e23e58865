//! Lists of tasks.

use axum::{extract::State, http::Uri};
use safelight_domain::TaskId;
use serde::Serialize;
use utoipa::ToSchema;

use super::filter;
use crate::{
    auth::Caller,
    http::{
        extract::Params,
        pagination::{Cursor, Page, page},
        problem::Problem,
        responses::ListProblems,
    },
    routes::documents::TaskDocument,
    state::ApiState,
};

/// A page of tasks.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TaskList)]
pub struct TaskListDocument {
    /// The tasks, newest first.
    pub tasks: Vec<TaskDocument>,
    /// The `cursor` of the next page; null on the last page.
    pub next_cursor: Option<String>,
}

/// List tasks, newest first.
#[utoipa::path(
    get, path = "/v1/tasks", operation_id = "list_tasks", tag = "tasks",
    params(
        filter::FilterParams,
        ("limit" = Option<u32>, Query, description = "Maximum number of tasks; default 50", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page"),
    ),
    responses(
        (status = 200, description = "A page of tasks", body = TaskListDocument, headers(
            ("Link" = String, description = "`rel=\"next\"`: the next page (RFC 8288); absent on the last one"),
        )),
        ListProblems,
    ),
)]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    uri: Uri,
    mut params: Params,
) -> Result<Page<TaskListDocument>, Problem> {
    let filter = filter::from_params(&caller, &mut params)?;
    let request = page::<TaskId>(&mut params)?;
    params.finish()?;
    let page = state.store.list_tasks(&filter, &request).await?;
    let next = page.next.map(Cursor::encode);
    let tasks = page.tasks.iter().map(|task| TaskDocument::new(task, &state.presets));
    let document = TaskListDocument { tasks: tasks.collect(), next_cursor: next.clone() };
    Ok(Page { document, uri, next })
}
