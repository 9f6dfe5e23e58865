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
        description = "An image-hosting backend. Once an upload is answered with 202, the image is never lost and its task never hangs: it ends as succeeded, failed with a reason, or cancelled.\n\nErrors are RFC 9457 problem documents with a stable `code`.",
    ),
    components(schemas(ProblemDocument)),
    tags(
        (name = "uploads", description = "Sending images"),
        (name = "tasks", description = "What became of them"),
        (name = "backfills", description = "Work on many images"),
        (name = "images", description = "What is known of them"),
        (name = "delivery", description = "Their bytes"),
        (name = "keys", description = "Who may do what, and what operators did"),
        (name = "fleet", description = "Who works, and on how much"),
        (name = "probes", description = "For machines that look after this one"),
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
        .description(Some("A key, as `safelight keys create` prints it"))
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

    /// Values in responses must be those that the description lists, or generated clients cannot read them.
    #[test]
    fn described_names_match_sent_names() {
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
