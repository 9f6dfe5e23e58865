//! The API's description, made from the same routes that serve it.

use std::collections::BTreeMap;

use axum::{Router, http::header};
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::{
    IntoResponses, OpenApi as _,
    openapi::{
        ContentBuilder, HeaderBuilder, ObjectBuilder, OpenApi, Ref, RefOr, Response,
        ResponseBuilder, Type,
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};
use utoipa_swagger_ui::SwaggerUi;

use crate::{
    ApiOptions,
    access::{self, admin, signed},
    backfills, delivery,
    headers::DOCS_POLICY,
    images, limits, probes,
    problem::{self, ProblemCode, ProblemDocument, Retry},
    queues,
    state::ApiState,
    tasks, uploads, workers,
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

/// The bytes of a picture.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code)] // read by the derive alone
pub struct Picture(Vec<u8>);

/// The description of the whole API.
pub fn openapi() -> OpenApi {
    let mut document = routes(ApiOptions::default()).into_openapi();
    access::document(&mut document);
    document
}

/// The routes of a node, each with its description.
pub fn routes(options: ApiOptions) -> OpenApiRouter<ApiState> {
    let mut router = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(probes::livez))
        .routes(routes!(probes::readyz))
        .routes(routes!(probes::metrics));
    if options.uploads {
        router = router
            .routes(routes!(uploads::upload, images::list))
            .routes(routes!(images::show, images::delete))
            .routes(routes!(tasks::list::list))
            .routes(routes!(tasks::show))
            .routes(routes!(tasks::events::events))
            .routes(routes!(tasks::control::cancel))
            .routes(routes!(tasks::control::retry))
            .routes(routes!(tasks::control::retry_many))
            .routes(routes!(backfills::create))
            .routes(routes!(backfills::pause))
            .routes(routes!(backfills::resume))
            .routes(routes!(backfills::report))
            .routes(routes!(workers::list))
            .routes(routes!(queues::list))
            .routes(routes!(signed::sign))
            .routes(routes!(limits::show))
            .routes(routes!(admin::create, admin::list))
            .routes(routes!(admin::revoke))
            .routes(routes!(admin::audit));
    }
    if options.delivery {
        router = router.routes(routes!(delivery::original)).routes(routes!(delivery::rendition));
    }
    router
}

/// `/openapi.json`, and `/docs`, a page to read it that needs no other host.
pub fn description(document: OpenApi) -> Router<ApiState> {
    // Left to itself the page asks a validator on the Internet.
    let config = utoipa_swagger_ui::Config::default().validator_url("none");
    let page = SwaggerUi::new("/docs").url("/openapi.json", document).config(config);
    let page: Router<ApiState> = page.into();
    page.layer(SetResponseHeaderLayer::overriding(header::CONTENT_SECURITY_POLICY, DOCS_POLICY))
}

/// Declares which problems a call can answer with, beside those that every call can.
macro_rules! answers {
    ($( $(#[$meta:meta])* $name:ident: $( $code:ident ),* );+ $(;)?) => {$(
        $(#[$meta])*
        pub struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                described(&[$( ProblemCode::$code, )* ProblemCode::Internal])
            }
        }
    )+};
}

answers! {
    /// Of an upload.
    UploadProblems: InvalidRequest, InvalidQuery, InvalidHeader, InvalidMultipart, InvalidField,
        InvalidIdempotencyKey, InvalidDigest, UnsupportedDigest, DigestMismatch, EmptyBody,
        BrokenBody, UploadTimeout, KeyInFlight, UploadTooLarge, UnsupportedMediaType, KeyReused,
        OverQuota, RateLimited, TooManyOwnUploads, TooManyUploads, TooManyJobs, DatabaseUnavailable,
        BlobsUnavailable, StorageFull;
    /// Of reading a task.
    TaskProblems: InvalidHeader, TaskNotFound, TooManyWaiting, DatabaseUnavailable;
    /// Of cancelling a task.
    CancelProblems: TaskNotFound, TaskEnded, NotCancellable, DatabaseUnavailable;
    /// Of deleting an image.
    DeleteProblems: InvalidHeader, ImageNotFound, ImageDeleted, DatabaseUnavailable;
    /// Of trying a task again.
    RetryProblems: TaskNotFound, TaskNotFailed, TaskDiscarded, DatabaseUnavailable;
    /// Of beginning a backfill.
    BackfillProblems: InvalidBody, UploadTimeout, SourceForbidden, BodyTooLarge, NotJson, IdTaken,
        DatabaseUnavailable;
    /// Of pausing and resuming a backfill.
    PauseProblems: TaskNotFound, TaskEnded, NotABackfill, DatabaseUnavailable;
    /// Of a backfill's report.
    ReportProblems: InvalidQuery, TaskNotFound, NotABackfill, DatabaseUnavailable;
    /// Of following a task.
    EventProblems: TaskNotFound, TooManyWaiting, DatabaseUnavailable;
    /// Of a list.
    ListProblems: InvalidQuery, DatabaseUnavailable;
    /// Of reading an image's metadata.
    ImageProblems: ImageNotFound, ImageCancelled, ImageDeleted, DatabaseUnavailable;
    /// Of reading bytes.
    DeliveryProblems: InvalidQuery, InvalidHeader, KeyMissing, InvalidKey, ScopeMissing,
        InvalidSignature, SignatureExpired, ImageNotFound, PresetNotFound, RenditionNotMade,
        ImageFailed, ImageCancelled, ImageDeleted, PreconditionFailed, RangeNotSatisfiable, BlobDamaged,
        ImageNotReady, TooManyWaiting, DatabaseUnavailable, BlobsUnavailable;
    /// Of signing a URL.
    SignProblems: InvalidBody, NotJson, BodyTooLarge, ImageNotFound, PresetNotFound, ImageCancelled,
        ImageDeleted;
    /// Of the limits.
    LimitProblems: ;
    /// Of making a key.
    NewKeyProblems: InvalidBody, NotJson, BodyTooLarge;
    /// Of a key.
    KeyProblems: KeyNotFound;
    /// Of the readiness probe.
    ReadyProblems: NotReady;
    /// Of calls that nothing can go wrong with.
    InternalProblems: ;
}

/// One response per status, with an example per kind of problem.
pub fn described(codes: &[ProblemCode]) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status: BTreeMap<String, Vec<ProblemCode>> = BTreeMap::new();
    for &code in codes {
        by_status.entry(code.status().as_str().to_owned()).or_default().push(code);
    }
    by_status.into_iter().map(|(status, codes)| (status, RefOr::T(response(&codes)))).collect()
}

fn response(codes: &[ProblemCode]) -> Response {
    let lines: Vec<_> =
        codes.iter().map(|code| format!("`{}`: {}.", code.as_str(), code.title())).collect();
    let examples = codes.iter().map(|&code| {
        let example = utoipa::openapi::example::ExampleBuilder::new()
            .summary(code.title())
            .value(Some(example(code)));
        (code.as_str(), example)
    });
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .examples_from_iter(examples)
        .build();
    let response = ResponseBuilder::new()
        .description(lines.join("\n\n"))
        .content(problem::MEDIA_TYPE, content);
    if codes.iter().all(|code| matches!(code.retry(), Retry::After(_))) {
        let header = HeaderBuilder::new()
            .schema(Some(ObjectBuilder::new().schema_type(Type::Integer)))
            .description(Some("Seconds until trying again makes sense"));
        return response.header("Retry-After", header.build()).build();
    }
    response.build()
}

fn example(code: ProblemCode) -> serde_json::Value {
    serde_json::json!({
        "type": format!("urn:safelight:problem:{}", code.as_str()),
        "title": code.title(),
        "status": code.status().as_u16(),
        "detail": "What happened this time.",
        "instance": "/the/path",
        "code": code.as_str(),
        "retryable": code.retry() != Retry::Never,
    })
}

#[cfg(test)]
mod tests {
    use safelight_domain::{ErrorCode, ImageFormat, JobKind, Lane, Status, TaskKind};
    use serde_json::json;

    /// What the answers say must be what the description lists, or no generated client can read
    /// them.
    #[test]
    fn names_are_described_as_they_are_sent() {
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
