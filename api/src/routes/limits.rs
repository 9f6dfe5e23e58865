//! The limits of the caller's owner.

use axum::{Json, extract::State};
use safelight_domain::{Owner, Scope};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::registry::{Access, ApiRoutes};
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
    ApiRoutes::new().route(Access::scopes(&[Scope::Read]), routes!(show))
}

/// What a client can know beforehand.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Limits)]
pub struct LimitsDocument {
    /// Whose limits these are.
    #[schema(value_type = String)]
    pub owner: Owner,
    /// The largest upload, in bytes.
    pub max_upload_bytes: u64,
    /// Pixels that a picture may have at most.
    pub max_pixels: u64,
    /// Pixels that a side of a picture may have at most.
    pub max_side: u32,
    /// Images and bytes that are stored, and may be.
    pub quota: QuotaDocument,
    /// Calls of the API per minute; null for any number.
    pub requests_per_minute: Option<u32>,
    /// Uploads per minute; null for any number.
    pub uploads_per_minute: Option<u32>,
    /// Uploads of the owner that a node receives at once.
    pub max_uploads_in_flight: usize,
}

/// What an owner has stored, and may store.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QuotaUse)]
pub struct QuotaDocument {
    /// Images that it has.
    pub used_images: u64,
    /// Images that it may have; null for any number.
    pub max_images: Option<u64>,
    /// Bytes of its originals.
    pub used_bytes: u64,
    /// Bytes that these may have; null for any number.
    pub max_bytes: Option<u64>,
}

/// What the caller may store and how often it may ask, and how much of that is used.
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
        max_uploads_in_flight: state.limits.uploads_at_once(&caller),
        owner: caller.owner,
    }))
}
