//! Metadata of images.

use axum::{Json, extract::State, http::HeaderMap, response::Response};
use safelight_common::domain::{Image, ImageId};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    extract::{Id, Params, PathId},
    openapi::{ImageProblems, ListProblems},
    pages::{Cursor, page},
    problem::{Problem, ProblemCode},
    state::ApiState,
    tasks::document::{ImageDocument, conditional},
};

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
    Id(id): Id<ImageId>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let image = load(&state, id).await?;
    conditional(&ImageDocument::new(&image, &state.presets), &headers)
}

/// The image, or the problem that there is none, or none any more.
pub async fn load(state: &ApiState, id: ImageId) -> Result<Image, Problem> {
    let image = state.services.store.image(id).await?.ok_or_else(|| ImageId::not_found(id))?;
    if image.discarded {
        return Err(gone());
    }
    Ok(image)
}

/// The image was there once.
pub fn gone() -> Problem {
    Problem::new(
        ProblemCode::ImageCancelled,
        "The upload of this image was cancelled; its bytes are gone.",
    )
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
    mut params: Params,
) -> Result<Json<ImageListDocument>, Problem> {
    let request = page::<ImageId>(&mut params)?;
    params.finish()?;
    let page = state.services.store.list_images(&request).await?;
    Ok(Json(ImageListDocument {
        images: page.images.iter().map(|image| ImageDocument::new(image, &state.presets)).collect(),
        next_cursor: page.next.map(Cursor::encode),
    }))
}
