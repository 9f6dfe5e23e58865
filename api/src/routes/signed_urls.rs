//! Signed URLs for image bytes.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use safelight_domain::{ImageId, Scope};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::{
    images::load,
    registry::{ApiRoutes, RouteAccess},
};
use crate::{
    auth::{Caller, MAX_SIGNED_SECONDS, SignedUrl},
    http::{
        extract::{Id, JsonBody},
        problem::{Problem, ProblemCode},
        responses::problem_responses,
    },
    state::ApiState,
};

/// Seconds that a signed URL is valid by default.
const DEFAULT_SECONDS: u32 = 3600;

problem_responses! {
    SignProblems: InvalidBody, UploadTimeout, NotJson, BodyTooLarge, ImageNotFound, PresetNotFound,
        ImageCancelled, ImageDeleted;
}

/// The routes for signed URLs.
pub fn routes() -> ApiRoutes {
    ApiRoutes::new().route(RouteAccess::scopes(&[Scope::Read]), routes!(sign))
}

/// What to sign.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(as = SignRequest)]
pub struct SignRequest {
    /// The preset; if absent, the URL is for the original.
    #[schema(example = "small")]
    preset: Option<String>,
    /// Seconds that the URL is valid; default 3600. The URL may be valid up to one second longer.
    #[schema(minimum = 1, maximum = 31_536_000)]
    expires_in: Option<u32>,
}

/// A URL that anyone who has it can read.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SignedUrl)]
pub struct SignedUrlDocument {
    /// The path with its signature; valid under every host name of the server.
    pub url: String,
    /// When it expires.
    pub expires_at: DateTime<Utc>,
    /// The id of the signing key. Revoking that key invalidates the URL.
    pub key_id: String,
}

/// Create a signed URL.
///
/// Anyone with the URL can read the bytes until it expires or its signing key is revoked. The first request
/// of an owner without a signing key creates one.
#[utoipa::path(
    post, path = "/v1/images/{id}/signed-url", operation_id = "sign_url", tag = "images",
    params(("id" = ImageId, Path, description = "The image's id")),
    request_body = SignRequest,
    responses((status = 200, description = "The signed URL", body = SignedUrlDocument), SignProblems),
)]
pub async fn sign(
    State(state): State<ApiState>,
    caller: Caller,
    Id(id): Id<ImageId>,
    JsonBody(request): JsonBody<SignRequest>,
) -> Result<Json<SignedUrlDocument>, Problem> {
    let image = load(&state, &caller, id).await?;
    let seconds = request.expires_in.unwrap_or(DEFAULT_SECONDS);
    if !(1..=MAX_SIGNED_SECONDS).contains(&seconds) {
        let detail = format!("`expires_in` must be 1 to {MAX_SIGNED_SECONDS} seconds.");
        return Err(Problem::new(ProblemCode::InvalidBody, detail));
    }
    let path = match &request.preset {
        None => format!("/images/{id}"),
        Some(preset) if state.presets.has(preset) => format!("/images/{id}/{preset}"),
        Some(preset) => return Err(state.presets.not_found(preset)),
    };
    let SignedUrl { url, expires, key_id } =
        state.signed_urls.sign(&path, &image.owner, seconds).await?;
    Ok(Json(SignedUrlDocument {
        url,
        expires_at: DateTime::from_timestamp(expires, 0).unwrap_or_default(),
        key_id,
    }))
}
