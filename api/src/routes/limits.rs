//! The limits of the caller's owner.

use axum::{Json, extract::State};
use safelight_domain::{Owner, Scope};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::registry::{ApiRoutes, RouteAccess};
use crate::{
    auth::Caller,
    http::{problem::Problem, responses::problem_responses},
    state::ApiState,
};

problem_responses! {
    LimitProblems: ;
}

/// The route for limits.
pub fn routes() -> ApiRoutes {
    ApiRoutes::new().route(RouteAccess::scopes(&[Scope::Read]), routes!(show))
}

/// The limits of an owner.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Limits)]
pub struct LimitsDocument {
    /// The owner.
    #[schema(value_type = String)]
    pub owner: Owner,
    /// The maximum size of an upload, in bytes.
    pub max_upload_bytes: u64,
    /// The maximum number of pixels of an image.
    pub max_pixels: u64,
    /// The maximum width and height of an image, in pixels.
    pub max_side: u32,
    /// The storage quota and its use.
    pub quota: QuotaDocument,
    /// The maximum number of requests per minute; null if unlimited.
    pub requests_per_minute: Option<u32>,
    /// The maximum number of uploads per minute; null if unlimited.
    pub uploads_per_minute: Option<u32>,
    /// The maximum number of concurrent uploads of the owner per node.
    pub max_uploads_in_flight: usize,
}

/// How much an owner has stored, and how much it may store.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QuotaUse)]
pub struct QuotaDocument {
    /// The number of stored images.
    pub used_images: u64,
    /// The maximum number of images; null if unlimited.
    pub max_images: Option<u64>,
    /// The size of the stored originals, in bytes.
    pub used_bytes: u64,
    /// The maximum number of bytes; null if unlimited.
    pub max_bytes: Option<u64>,
}

/// Get the limits of the caller's owner: storage quota, its use, and request rates.
#[utoipa::path(
    get, path = "/v1/limits", operation_id = "get_limits", tag = "images",
    responses((status = 200, description = "The limits", body = LimitsDocument), LimitProblems),
)]
pub async fn show(
    State(state): State<ApiState>,
    caller: Caller,
) -> Result<Json<LimitsDocument>, Problem> {
    let config = &state.config;
    let used = state.limits.usage(&caller.owner).await?;
    let (limits, quota) = (state.limits.of(&caller.owner), state.limits.quota(&caller.owner));
    let rate = |number: u32| (number > 0).then_some(number);
    Ok(Json(LimitsDocument {
        max_upload_bytes: config.max_upload_bytes,
        max_pixels: config.max_pixels,
        max_side: config.max_side,
        quota: QuotaDocument {
            used_images: used.images,
            max_images: quota.images,
            used_bytes: used.bytes,
            max_bytes: quota.bytes,
        },
        requests_per_minute: rate(limits.requests_per_minute),
        uploads_per_minute: rate(limits.uploads_per_minute),
        max_uploads_in_flight: state.limits.max_concurrent_uploads(&caller),
        owner: caller.owner,
    }))
}
