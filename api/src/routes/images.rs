//! Metadata of images, and their deletion.

use axum::{
    extract::State,
    http::{HeaderMap, Uri},
    response::Response,
};
use safelight_domain::{Image, ImageId, JobId, Scope, Status, Task, TaskId};
use safelight_store::{Deletion, DeletionRequest};
use safelight_telemetry::traces;
use serde::Serialize;
use tracing::Instrument;
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::{
    documents::{ImageDocument, TaskDocument},
    registry::{ApiRoutes, RouteAccess},
    task_responses::{created, reload, wait_or_keep},
};
use crate::{
    auth::Caller,
    http::{
        conditional::conditional,
        draining::Draining,
        extract::{Id, Params, PathId},
        pagination::{Cursor, Page, page},
        prefer::Wait,
        problem::Problem,
        responses::{ListProblems, problem_responses},
    },
    state::ApiState,
};

problem_responses! {
    /// Of reading an image's metadata.
    ImageProblems: ImageNotFound, ImageCancelled, ImageDeleted, DatabaseUnavailable;
    /// Of deleting an image.
    DeleteProblems: InvalidHeader, ImageNotFound, ImageDeleted, DatabaseUnavailable;
}

/// The routes for images.
pub fn routes() -> ApiRoutes {
    let (read, upload) =
        (RouteAccess::scopes(&[Scope::Read]), RouteAccess::scopes(&[Scope::Upload]));
    ApiRoutes::new()
        .route(read, routes!(list))
        .route(read, routes!(show))
        .route(upload, routes!(delete))
}

/// Attempts of a deletion: it is retried until it succeeds, with at most `backoff_cap_ms` in between.
const ATTEMPTS: u32 = 1_000_000;

/// A page of images.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ImageList)]
pub struct ImageListDocument {
    /// The images, newest first.
    pub images: Vec<ImageDocument>,
    /// The `cursor` of the next page; null on the last page.
    pub next_cursor: Option<String>,
}

/// Get an image's metadata.
#[utoipa::path(
    get, path = "/v1/images/{id}", operation_id = "get_image", tag = "images",
    params(
        ("id" = ImageId, Path, description = "The image's id"),
        ("if-none-match" = Option<String>, Header, description = "The `ETag` of the client's copy of the document"),
    ),
    responses(
        (status = 200, description = "The image's metadata", body = ImageDocument, headers(
            ("ETag" = String, description = "Identifies this version of the document"),
        )),
        (status = 304, description = "The client's copy is current"),
        ImageProblems,
    ),
)]
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id<ImageId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let image = load(&state, &caller, id).await?;
    conditional(&ImageDocument::new(&image, &state.presets), &headers)
}

/// The image, or the problem that there is none for this caller, or none any more.
pub async fn load(state: &ApiState, caller: &Caller, id: ImageId) -> Result<Image, Problem> {
    let image = find(state, caller, id).await?;
    if image.discarded { Err(Problem::image_gone(image.deleted)) } else { Ok(image) }
}

/// The image, gone or not; the problem that there never was one for this caller.
async fn find(state: &ApiState, caller: &Caller, id: ImageId) -> Result<Image, Problem> {
    let image = state.store.image(id).await?.filter(|image| caller.may_see(&image.owner));
    image.ok_or_else(|| ImageId::not_found(id))
}

/// Delete an image.
///
/// The image becomes unavailable immediately: reads answer 410, and its title, tags, file name, position and
/// time are erased. A task removes the original, the renditions, and the copies in caches and caching
/// proxies; its document is the receipt. The task cannot be cancelled and is retried until it succeeds. A
/// repeated request returns the same task and immediately retries it if it has failed.
#[utoipa::path(
    delete, path = "/v1/images/{id}", operation_id = "delete_image", tag = "images",
    params(
        ("id" = ImageId, Path, description = "The image's id"),
        ("prefer" = Option<String>, Header, description = "`wait=N`: wait until everything is removed, at most N seconds (0–60)", example = "wait=10"),
    ),
    responses(
        (status = 202, description = "The image is unavailable, and this task removes its stored bytes", body = TaskDocument, headers(
            ("Location" = String, description = "The URL of the task"),
            ("Retry-After" = u32, description = "Seconds until the client should poll; absent if the task has ended"),
            ("Preference-Applied" = String, description = "`wait=N` if the response waited for the task"),
        )),
        DeleteProblems,
    ),
)]
pub async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    draining: Draining,
    Id(id): Id<ImageId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wait = Wait::from_headers(&headers);
    let image = find(&state, &caller, id).await?;
    // In a separate task: if the client hangs up after the commit, this node still marks the image as
    // deleted.
    let deletion = {
        let state = state.clone();
        async move { begin_deletion(&state, &image).await }
    };
    let deletion = tokio::spawn(deletion.in_current_span()).await;
    let task = deletion.map_err(|error| Problem::internal(&error))??;
    // The image is deleted, also if the wait fails.
    let task = wait_or_keep(&state, &caller, task, wait, &draining).await;
    created(&state, &task, wait)
}

/// Starts the deletion of an image, unless it has started; returns its task.
async fn begin_deletion(state: &ApiState, image: &Image) -> Result<Task, Problem> {
    let store = &state.store;
    let request = deletion_of(state, image.id);
    let deletion = match store.delete_image(&request).await {
        // The connection may have been lost after the commit: then this finds the image deleted.
        Err(error) if error.is_unavailable() => store.delete_image(&request).await,
        answered => answered,
    };
    let id = match deletion? {
        Deletion::Unknown => return Err(ImageId::not_found(image.id)),
        Deletion::Forgotten => return Err(Problem::image_gone(true)),
        Deletion::Accepted(task) | Deletion::Before(task) => task,
    };
    state.delivery.mark_deleted(image);
    state.outbox_signal.notify();
    let task = reload(state, id).await?;
    if task.status != Status::Failed {
        return Ok(task);
    }
    store.retry(&[id]).await?;
    reload(state, id).await
}

fn deletion_of(state: &ApiState, image: ImageId) -> DeletionRequest {
    let config = &state.config;
    let presets = config.presets.iter();
    DeletionRequest {
        image,
        task: TaskId::new(),
        job: JobId::new(),
        max_attempts: ATTEMPTS,
        after: config.unknown_after(),
        presets: presets.map(|(name, preset)| (name.clone(), preset.fingerprint())).collect(),
        trace: traces::current(),
    }
}

/// List images, newest first.
#[utoipa::path(
    get, path = "/v1/images", operation_id = "list_images", tag = "images",
    params(
        ("limit" = Option<u32>, Query, description = "Maximum number of images; default 50", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the previous page"),
    ),
    responses(
        (status = 200, description = "A page of images", body = ImageListDocument, headers(
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
) -> Result<Page<ImageListDocument>, Problem> {
    let request = page::<ImageId>(&mut params)?;
    params.finish()?;
    let page = state.store.list_images(caller.sees(), &request).await?;
    let next = page.next.map(Cursor::encode);
    let images = page.images.iter().map(|image| ImageDocument::new(image, &state.presets));
    let document = ImageListDocument { images: images.collect(), next_cursor: next.clone() };
    Ok(Page { document, uri, next })
}
