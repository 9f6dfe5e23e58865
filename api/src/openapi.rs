//! The API's description, made from the same routes that serve it.

use utoipa::{
    OpenApi as _,
    openapi::{
        OpenApi,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use crate::{
    http::problem::ProblemDocument,
    routes::{
        self,
        registry::{ApiRoutes, SECURITY_SCHEME},
    },
    state::ApiOptions,
};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Safelight",
        description = "An image-hosting backend. After a 202 response to an upload, the image is never lost and its task always ends: as succeeded, failed with a reason, or cancelled.\n\nErrors are RFC 9457 problem documents with a stable `code`.",
    ),
    servers((url = "/", description = "The server that this document is from")),
    components(schemas(ProblemDocument)),
    tags(
        (name = "uploads", description = "Upload images"),
        (name = "tasks", description = "The state of uploads, deletions and other tasks"),
        (name = "backfills", description = "Process many stored images, or import existing ones"),
        (name = "images", description = "Metadata of images, deletion, signed URLs and limits"),
        (name = "delivery", description = "The bytes of originals and renditions"),
        (name = "keys", description = "API keys and the audit log"),
        (name = "fleet", description = "Workers and queues"),
        (name = "probes", description = "Health checks and metrics"),
    ),
)]
struct Description;

/// The description of the whole API.
pub fn openapi() -> OpenApi {
    routes(ApiOptions::default()).into_parts().0.into_openapi()
}

/// The routes of a node, each with its description.
pub fn routes(options: ApiOptions) -> ApiRoutes {
    let mut frame = Description::openapi();
    let key = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A key, as printed by `safelight keys create`"))
        .build();
    frame
        .components
        .get_or_insert_default()
        .add_security_scheme(SECURITY_SCHEME, SecurityScheme::Http(key));
    routes::all(ApiRoutes::with_openapi(frame), options)
}

#[cfg(test)]
mod tests {
    use safelight_domain::{ErrorCode, ImageFormat, JobKind, Lane, Status, TaskKind};
    use serde_json::json;

    /// Generated clients can only parse values that the OpenAPI document lists.
    #[test]
    fn described_enum_values_match_the_responses() {
        let document = json!(super::openapi());
        let described = |schema: &str| document["components"]["schemas"][schema]["enum"].clone();
        assert_eq!(described("Status"), json!(Status::ALL));
        assert_eq!(described("JobKind"), json!(JobKind::ALL));
        assert_eq!(described("TaskKind"), json!(TaskKind::ALL));
        assert_eq!(described("Lane"), json!(Lane::ALL));
        assert_eq!(described("ImageFormat"), json!(ImageFormat::ALL));
        assert_eq!(described("ErrorCode"), json!(ErrorCode::ALL));
    }
}
