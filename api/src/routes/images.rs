//! Metadata of images, and their deletion.

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use safelight_domain::{Image, ImageId, JobId, Status, Task, TaskId};
use safelight_store::{Deletion, DeletionRequest};
use safelight_telemetry::traces;
use serde::Serialize;
use tracing::Instrument;
use utoipa::ToSchema;

use crate::{
    access::Caller,
    extract::{Id, Params, PathId},
    openapi::{DeleteProblems, ImageProblems, ListProblems},
    pages::{Cursor, page},
    prefer::Wait,
    problem::{Problem, ProblemCode},
    state::{ApiState, Draining},
    tasks::{
        self, add_progress_headers,
        document::{ImageDocument, TaskDocument, conditional},
        wait_until_final,
    },
};

/// Attempts of a deletion: it is tried until it is done, with at most `backoff_cap_ms` in between.
const ATTEMPTS: u32 = 1_000_000;

/// A page of images.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ImageList)]
pub struct ImageListDocument {
    /// The images, newest first.
    pub images: Vec<ImageDocument>,
    /// `cursor` of the next page; null on the last.
    pub next_cursor: Option<String>,
}

/// What is known of an image.
#[utoipa::path(
    get, path = "/v1/images/{id}", operation_id = "get_image", tag = "images",
    params(
        ("id" = ImageId, Path, description = "The image's id"),
        ("if-none-match" = Option<String>, Header, description = "The `ETag` of the document that the client has"),
    ),
    responses(
        (status = 200, description = "The image's metadata", body = ImageDocument, headers(
            ("ETag" = String, description = "Names this state of the document"),
        )),
        (status = 304, description = "The document is still the one that the client has"),
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
    if image.discarded { Err(gone(image.deleted)) } else { Ok(image) }
}

/// The image, gone or not; the problem that there never was one for this caller.
async fn find(state: &ApiState, caller: &Caller, id: ImageId) -> Result<Image, Problem> {
    let image = state.services.store.image(id).await?.filter(|image| caller.may_see(&image.owner));
    image.ok_or_else(|| ImageId::not_found(id))
}

/// The image was there once; whether it was deleted, or its upload cancelled.
pub fn gone(deleted: bool) -> Problem {
    if deleted {
        return Problem::new(ProblemCode::ImageDeleted, "The image was deleted.");
    }
    Problem::new(
        ProblemCode::ImageCancelled,
        "The upload of this image was cancelled; its bytes are gone.",
    )
}

/// Delete an image.
///
/// From now on it is gone: reads answer 410, and what is known of the picture (title, tags, file name,
/// position, time) is forgotten. A task removes the rest: original, renditions, copies in caches, and at
/// caching proxies. Its document is the receipt. It cannot be cancelled, and is tried until it is done.
/// Asked again, the answer is the same task, tried again at once if it had failed.
#[utoipa::path(
    delete, path = "/v1/images/{id}", operation_id = "delete_image", tag = "images",
    params(
        ("id" = ImageId, Path, description = "The image's id"),
        ("prefer" = Option<String>, Header, description = "`wait=N`: hold the answer until everything is removed, at most N seconds (0–60)", example = "wait=10"),
    ),
    responses(
        (status = 202, description = "The image is gone, and this task removes what was stored of it", body = TaskDocument, headers(
            ("Location" = String, description = "The task"),
            ("Retry-After" = u32, description = "Seconds until polling makes sense; absent if the task is final already"),
            ("Preference-Applied" = String, description = "`wait=N` if the answer was held on request"),
        )),
        DeleteProblems,
    ),
)]
pub async fn delete(
    State(state): State<ApiState>,
    caller: Caller,
    draining: Option<Extension<Draining>>,
    Id(id): Id<ImageId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wait = Wait::from_headers(&headers)?;
    let image = find(&state, &caller, id).await?;
    // In a task of its own: who hangs up after the commit does not keep this node from forgetting the image.
    let begun = {
        let state = state.clone();
        async move { begin_deletion(&state, &image).await }
    };
    let begun = tokio::spawn(begun.in_current_span()).await;
    let task = begun.map_err(|error| Problem::internal(&error))??;
    let task = match wait {
        // The image is gone: a wait that cannot be had is no reason to say anything else.
        Some(wait) => match wait_until_final(&state, &caller, task.clone(), wait, draining).await {
            Ok(task) => task,
            Err(_) => task,
        },
        None => task,
    };
    accepted(&state, &task, wait)
}

/// Has an image deleted, unless it is; answers with the task that does it.
async fn begin_deletion(state: &ApiState, image: &Image) -> Result<Task, Problem> {
    let store = &state.services.store;
    let request = deletion_of(state, image.id);
    let deletion = match store.delete_image(&request).await {
        // The connection may have been lost after the commit: then this finds it deleted before.
        Err(error) if error.is_unavailable() => store.delete_image(&request).await,
        answered => answered,
    };
    let id = match deletion? {
        Deletion::Unknown => return Err(ImageId::not_found(image.id)),
        Deletion::Forgotten => return Err(gone(true)),
        Deletion::Accepted(task) | Deletion::Before(task) => task,
    };
    state.delivery.bury(image);
    state.services.outbox_signal.notify();
    let task = tasks::reload(state, id).await?;
    if task.status != Status::Failed {
        return Ok(task);
    }
    store.retry(&[id]).await?;
    tasks::reload(state, id).await
}

fn deletion_of(state: &ApiState, image: ImageId) -> DeletionRequest {
    let config = &state.services.config;
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

fn accepted(state: &ApiState, task: &Task, wait: Option<Wait>) -> Result<Response, Problem> {
    let location = HeaderValue::try_from(format!("/v1/tasks/{}", task.id))
        .map_err(|error| Problem::internal(&error))?;
    let document = Json(TaskDocument::new(task, &state.presets));
    let mut response =
        (StatusCode::ACCEPTED, [(header::LOCATION, location)], document).into_response();
    add_progress_headers(&mut response, task, wait);
    Ok(response)
}

/// Images, newest first.
#[utoipa::path(
    get, path = "/v1/images", operation_id = "list_images", tag = "images",
    params(
        ("limit" = Option<u32>, Query, description = "Images at most, 50 unless said", minimum = 1, maximum = 500),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses(
        (status = 200, description = "A page of images", body = ImageListDocument),
        ListProblems,
    ),
)]
pub async fn list(
    State(state): State<ApiState>,
    caller: Caller,
    mut params: Params,
) -> Result<Json<ImageListDocument>, Problem> {
    let request = page::<ImageId>(&mut params)?;
    params.finish()?;
    let page = state.services.store.list_images(caller.sees(), &request).await?;
    Ok(Json(ImageListDocument {
        images: page.images.iter().map(|image| ImageDocument::new(image, &state.presets)).collect(),
        next_cursor: page.next.map(Cursor::encode),
    }))
}
