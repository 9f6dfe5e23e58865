//! What each route asks for. One table: the guard goes by it, the API's description is made from it, and
//! the tests walk it.

use axum::http::Method;
use safelight_domain::Scope;
use utoipa::openapi::{
    OpenApi,
    path::Operation,
    security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};

use crate::problem::ProblemCode;

/// What a route asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing, here: it is for everybody, or the handler asks by itself.
    Nothing,
    /// A caller with all of these scopes.
    Scopes(&'static [Scope]),
}

const UPLOAD: Need = Need::Scopes(&[Scope::Upload]);
const READ: Need = Need::Scopes(&[Scope::Read]);
const ADMIN: Need = Need::Scopes(&[Scope::Admin]);
const METRICS: Need = Need::Scopes(&[Scope::Metrics]);
/// Changes what a filter finds, and tells what that is.
const UPLOAD_AND_READ: Need = Need::Scopes(&[Scope::Upload, Scope::Read]);

/// Every route.
const RULES: &[(Method, &str, Need)] = &[
    (Method::GET, "/livez", Need::Nothing),
    (Method::GET, "/readyz", Need::Nothing),
    (Method::GET, "/metrics", METRICS),
    (Method::GET, "/images/{id}", Need::Nothing),
    (Method::GET, "/images/{id}/{preset}", Need::Nothing),
    (Method::POST, "/v1/images", UPLOAD),
    (Method::GET, "/v1/images", READ),
    (Method::GET, "/v1/images/{id}", READ),
    (Method::DELETE, "/v1/images/{id}", UPLOAD),
    (Method::POST, "/v1/images/{id}/signed-url", READ),
    (Method::GET, "/v1/tasks", READ),
    (Method::GET, "/v1/tasks/{id}", READ),
    (Method::GET, "/v1/tasks/{id}/events", READ),
    (Method::POST, "/v1/tasks/{id}/cancel", UPLOAD),
    (Method::POST, "/v1/tasks/{id}/retry", UPLOAD),
    (Method::POST, "/v1/tasks/retry", UPLOAD_AND_READ),
    (Method::GET, "/v1/limits", READ),
    (Method::POST, "/v1/backfills", ADMIN),
    (Method::POST, "/v1/tasks/{id}/pause", ADMIN),
    (Method::POST, "/v1/tasks/{id}/resume", ADMIN),
    (Method::GET, "/v1/tasks/{id}/report", ADMIN),
    (Method::GET, "/v1/workers", ADMIN),
    (Method::GET, "/v1/queues", ADMIN),
    (Method::GET, "/v1/keys", ADMIN),
    (Method::POST, "/v1/keys", ADMIN),
    (Method::DELETE, "/v1/keys/{id}", ADMIN),
    (Method::GET, "/v1/audit", ADMIN),
];

/// What a method of a route asks for. One that nobody has thought of is for admins.
pub fn need(method: &Method, path: &str) -> Need {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    let rule = RULES.iter().find(|(known, route, _)| known == method && *route == path);
    rule.map_or(ADMIN, |(_, _, need)| *need)
}

/// How the description calls keys.
const SCHEME: &str = "key";

/// Adds to a description what each of its calls asks for, and how it answers who lacks it.
pub fn document(description: &mut OpenApi) {
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A key, as `safelight keys create` prints it"))
        .build();
    description
        .components
        .get_or_insert_default()
        .add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
    for (path, item) in &mut description.paths.paths {
        let operations = [
            (Method::GET, &mut item.get),
            (Method::POST, &mut item.post),
            (Method::DELETE, &mut item.delete),
        ];
        for (method, operation) in operations {
            if let (Some(operation), Need::Scopes(scopes)) = (operation, need(&method, path)) {
                guarded(operation, scopes);
            }
        }
    }
}

fn guarded(operation: &mut Operation, scopes: &[Scope]) {
    let needed = SecurityRequirement::new(SCHEME, scopes.iter().map(|scope| scope.as_str()));
    operation.security.get_or_insert_default().push(needed);
    for codes in [
        &[ProblemCode::KeyMissing, ProblemCode::InvalidKey][..],
        &[ProblemCode::ScopeMissing],
        &[ProblemCode::RateLimited],
        &[ProblemCode::DatabaseUnavailable],
    ] {
        for (status, response) in crate::openapi::described(codes) {
            operation.responses.responses.entry(status).or_insert(response);
        }
    }
}
