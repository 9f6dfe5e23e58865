//! Backfills: start, pause, resume, and the result of each image. A backfill is a task; clients poll and
//! cancel it as any other.

mod report;
mod request;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use safelight_domain::{Scope, Task, TaskId, TaskKind};
use safelight_store::NewBackfill;
use utoipa_axum::routes;

use self::request::BackfillRequest;
use super::{
    documents::TaskDocument,
    registry::{ApiRoutes, RouteAccess},
    task_responses::{accepted, load},
};
use crate::{
    auth::{AuditDetail, Caller},
    http::{
        extract::{Id, JsonBody, Params},
        problem::{Problem, ProblemCode},
        responses::problem_responses,
    },
    state::ApiState,
};

problem_responses! {
    /// Of beginning a backfill.
    BackfillProblems: InvalidBody, UploadTimeout, SourceForbidden, BodyTooLarge, NotJson, IdTaken,
        DatabaseUnavailable;
    /// Of pausing and resuming a backfill.
    PauseProblems: TaskNotFound, TaskEnded, NotABackfill, DatabaseUnavailable;
    /// Of a backfill's report.
    ReportProblems: InvalidQuery, TaskNotFound, NotABackfill, DatabaseUnavailable;
}

/// The routes for backfills.
pub fn routes() -> ApiRoutes {
    let admin = RouteAccess::scopes(&[Scope::Admin]);
    ApiRoutes::new()
        .route(admin, routes!(create))
        .route(admin, routes!(pause))
        .route(admin, routes!(resume))
        .route(admin, routes!(report))
}

const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// Start a backfill.
///
/// A backfill makes renditions of stored images, imports existing images, verifies stored images, or removes
/// unreferenced objects from the blob store. Poll its task: `backfill` in the document reports the progress.
#[utoipa::path(
    post, path = "/v1/backfills", operation_id = "create_backfill", tag = "backfills",
    request_body = BackfillRequest,
    responses(
        (status = 202, description = "The backfill's task", body = TaskDocument, headers(
            ("Location" = String, description = "The URL of the task"),
            ("Retry-After" = u32, description = "Seconds until the client should poll again"),
        )),
        BackfillProblems,
    ),
)]
pub async fn create(
    State(state): State<ApiState>,
    caller: Caller,
    JsonBody(request): JsonBody<BackfillRequest>,
) -> Result<Response, Problem> {
    let task = request.id.unwrap_or_else(TaskId::new);
    let spec = request.check(&state.config, &state.presets, state.limits.quota(&caller.owner))?;
    let new = NewBackfill { task, owner: caller.owner.clone(), spec };
    if !state.store.create_backfill(&new).await? {
        return Err(Problem::new(
            ProblemCode::IdTaken,
            "The id is that of another task, or of a backfill with another request.",
        ));
    }
    tracing::info!(
        task = %new.task, kind = %new.spec.kind, dry_run = new.spec.dry_run, "a backfill starts"
    );
    let mut response = answer(&state, &caller, new.task).await?;
    let dry_run = if new.spec.dry_run { ", dry run" } else { "" };
    response.extensions_mut().insert(AuditDetail(format!("({}{dry_run})", new.spec.kind)));
    let location = HeaderValue::try_from(format!("/v1/tasks/{}", new.task));
    response.headers_mut().extend(location.ok().map(|at| (header::LOCATION, at)));
    Ok(response)
}

/// Pause a backfill.
///
/// No more images are started until the backfill is resumed; images in progress are finished.
#[utoipa::path(
    post, path = "/v1/tasks/{id}/pause", operation_id = "pause_backfill", tag = "backfills",
    params(("id" = TaskId, Path, description = "The backfill's id")),
    responses((status = 202, description = "The paused task", body = TaskDocument), PauseProblems),
)]
pub async fn pause(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id<TaskId>,
) -> Result<Response, Problem> {
    set_paused(&state, &caller, id, true).await
}

/// Resume a paused backfill.
#[utoipa::path(
    post, path = "/v1/tasks/{id}/resume", operation_id = "resume_backfill", tag = "backfills",
    params(("id" = TaskId, Path, description = "The backfill's id")),
    responses((status = 202, description = "The resumed task", body = TaskDocument), PauseProblems),
)]
pub async fn resume(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id<TaskId>,
) -> Result<Response, Problem> {
    set_paused(&state, &caller, id, false).await
}

async fn set_paused(
    state: &ApiState,
    caller: &Caller,
    id: TaskId,
    paused: bool,
) -> Result<Response, Problem> {
    let task = backfill(state, caller, id).await?;
    if state.store.pause_backfill(id, paused).await? {
        return answer(state, caller, id).await;
    }
    let why = if task.status.is_final() {
        format!("The backfill is `{}`: it cannot be paused or resumed.", task.status)
    } else {
        "The backfill has started all of its images, so nothing is left to pause; those under way \
         are finished."
            .to_owned()
    };
    Err(Problem::new(ProblemCode::TaskEnded, why))
}

/// Get the result of each image of a backfill.
///
/// One JSON object per line, ordered by `id`: `{"id", "outcome", "reason", "detail", "source"}`. Images in
/// progress have no line yet. To continue an interrupted download, pass the `id` of the last line as `after`.
#[utoipa::path(
    get, path = "/v1/tasks/{id}/report", operation_id = "backfill_report", tag = "backfills",
    params(
        ("id" = TaskId, Path, description = "The backfill's id"),
        ("after" = Option<uuid::Uuid>, Query, description = "Only lines with a greater `id`"),
    ),
    responses(
        (status = 200, description = "The results, one per line", body = report::ItemDocument, content_type = "application/x-ndjson"),
        ReportProblems,
    ),
)]
pub async fn report(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id<TaskId>,
    mut params: Params,
) -> Result<Response, Problem> {
    let after = params.parse("after")?;
    params.finish()?;
    backfill(&state, &caller, id).await?;
    let held = report::permit(state.limits.in_memory(), &caller)?;
    let lines = report::lines(state.store.clone(), id, after, held).await?;
    let headers: [(HeaderName, HeaderValue); 2] = [
        (header::CONTENT_TYPE, NDJSON),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    Ok((headers, Body::from_stream(lines)).into_response())
}

/// The task, if it is a backfill.
async fn backfill(state: &ApiState, caller: &Caller, id: TaskId) -> Result<Task, Problem> {
    let task = load(state, caller, id).await?;
    if task.kind == TaskKind::Backfill {
        return Ok(task);
    }
    Err(Problem::new(
        ProblemCode::NotABackfill,
        format!("The task is of the kind `{}`; only backfills can do this.", task.kind),
    ))
}

async fn answer(state: &ApiState, caller: &Caller, id: TaskId) -> Result<Response, Problem> {
    Ok(accepted(state, &load(state, caller, id).await?, None))
}
