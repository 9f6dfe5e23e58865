//! How a route is registered: with what it requires of its caller, which the guard enforces and the API's
//! description shows.

use std::collections::HashMap;

use axum::http::Method;
use safelight_domain::Scope;
use utoipa::openapi::{OpenApi, RefOr, path::Operation, security::SecurityRequirement};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};

use crate::{
    http::{problem::ProblemCode, responses::add_problems},
    limits::Counted,
    state::ApiState,
};

/// The name of the API's security scheme in its description.
pub const SECURITY_SCHEME: &str = "key";

/// What a route requires of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteAccess {
    /// Scopes that the caller must have, all of them; `None` for a route that is public, or checks access
    /// itself.
    pub scopes: Option<&'static [Scope]>,
    /// The rates that its requests count towards.
    pub counted: &'static [Counted],
    /// Whether it reads a JSON document; set from the description of the route.
    pub takes_json: bool,
    /// Scopes of a key that clients may send to a route without `scopes`, for what is not public.
    pub optional: &'static [Scope],
}

impl RouteAccess {
    /// Nothing: the route is public, or its handler checks access itself.
    pub const PUBLIC: Self = Self { scopes: None, counted: &[], takes_json: false, optional: &[] };

    /// Nothing for what is public; a key with these scopes for the rest, which the handler checks.
    pub const fn public_or(optional: &'static [Scope]) -> Self {
        Self { optional, ..Self::PUBLIC }
    }

    /// A caller with all of these scopes.
    pub const fn scopes(scopes: &'static [Scope]) -> Self {
        Self { scopes: Some(scopes), counted: &[Counted::Requests], ..Self::PUBLIC }
    }

    /// The same, counted towards these rates.
    pub const fn counted(self, counted: &'static [Counted]) -> Self {
        Self { counted, ..self }
    }
}

/// What each registered route requires.
#[derive(Default)]
pub struct AccessTable(HashMap<String, Vec<(Method, RouteAccess)>>);

impl AccessTable {
    /// What a method of a route requires. A method that is not registered is for admins.
    pub fn of(&self, method: &Method, path: &str) -> RouteAccess {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        let methods = self.0.get(path).map_or(&[][..], Vec::as_slice);
        let found = methods.iter().find(|(known, _)| known == method);
        found.map_or(const { RouteAccess::scopes(&[Scope::Admin]) }, |(_, access)| *access)
    }

    fn add(&mut self, method: Method, path: &str, access: RouteAccess) {
        self.0.entry(path.to_owned()).or_default().push((method, access));
    }
}

/// Routes with their description and what they require.
pub struct ApiRoutes {
    router: OpenApiRouter<ApiState>,
    access: AccessTable,
}

impl ApiRoutes {
    /// No routes.
    pub fn new() -> Self {
        Self { router: OpenApiRouter::new(), access: AccessTable::default() }
    }

    /// No routes, with the frame of the whole description.
    pub fn with_openapi(openapi: OpenApi) -> Self {
        Self { router: OpenApiRouter::with_openapi(openapi), access: AccessTable::default() }
    }

    /// Adds the handlers of one path, made by `routes!`, which all require the same.
    pub fn route(mut self, access: RouteAccess, handlers: UtoipaMethodRouter<ApiState>) -> Self {
        let (schemas, mut paths, methods) = handlers;
        for (path, item) in &mut paths.paths {
            let operations = [
                (Method::GET, &mut item.get),
                (Method::PUT, &mut item.put),
                (Method::POST, &mut item.post),
                (Method::DELETE, &mut item.delete),
                (Method::OPTIONS, &mut item.options),
                (Method::HEAD, &mut item.head),
                (Method::PATCH, &mut item.patch),
                (Method::TRACE, &mut item.trace),
            ];
            for (method, operation) in operations {
                let Some(operation) = operation else { continue };
                let takes_json = takes_json(operation);
                self.access.add(method, path, RouteAccess { takes_json, ..access });
                if let Some(scopes) = access.scopes {
                    describe_guard(operation, scopes);
                } else if !access.optional.is_empty() {
                    // No key, or one.
                    let alternatives = operation.security.get_or_insert_default();
                    alternatives
                        .extend([SecurityRequirement::default(), key_with(access.optional)]);
                }
            }
        }
        Self { router: self.router.routes((schemas, paths, methods)), ..self }
    }

    /// Adds the routes of another resource.
    pub fn merge(mut self, other: Self) -> Self {
        for (path, methods) in other.access.0 {
            self.access.0.entry(path).or_default().extend(methods);
        }
        Self { router: self.router.merge(other.router), ..self }
    }

    /// The router and what its routes require.
    pub fn into_parts(self) -> (OpenApiRouter<ApiState>, AccessTable) {
        (self.router, self.access)
    }
}

/// Adds to an operation which scopes it requires, and how it answers a caller that lacks them.
fn describe_guard(operation: &mut Operation, scopes: &[Scope]) {
    operation.security.get_or_insert_default().push(key_with(scopes));
    for codes in [
        &[ProblemCode::KeyMissing, ProblemCode::InvalidKey][..],
        &[ProblemCode::ScopeMissing],
        &[ProblemCode::RateLimited, ProblemCode::TooManyOwnRequests],
        &[ProblemCode::DatabaseUnavailable, ProblemCode::TooManyRequests],
    ] {
        add_problems(&mut operation.responses, codes);
    }
}

/// Whether an operation is described as taking a JSON document.
fn takes_json(operation: &Operation) -> bool {
    let Some(RefOr::T(body)) = &operation.request_body else { return false };
    body.content.contains_key("application/json")
}

fn key_with(scopes: &[Scope]) -> SecurityRequirement {
    SecurityRequirement::new(SECURITY_SCHEME, scopes.iter().map(|scope| scope.as_str()))
}
