//! The whole API as one service: the fast path, the middleware, the guard and the routes.

use std::{convert::Infallible, future::Future, sync::Arc};

use axum::{
    Extension, Router,
    body::HttpBody,
    extract::{Request, State},
    middleware::{from_fn, from_fn_with_state},
    response::Response,
    routing::get,
};
use bytes::Bytes;
use futures::{TryFutureExt, future::Either};
use tower::{Layer, Service};
use tower_http::{catch_panic::CatchPanicLayer, cors::CorsLayer};

use crate::{
    delivery::{FastPath, FastPathLayer},
    guard::{self, Guard},
    http::{
        cors,
        draining::Draining,
        problem::{self, Problem, ProblemCode},
        request_limits, request_log,
        security_headers::SecurityHeaders,
    },
    openapi,
    routes::{docs, probes},
    state::{ApiOptions, ApiParts, ApiState, RenderMetrics},
};

/// The whole API, ready to be served. Clones share it.
#[derive(Clone)]
pub struct Api {
    service: FastPath<Router>,
    cors: Option<CorsLayer>,
    security_headers: SecurityHeaders,
    state: ApiState,
}

impl Api {
    /// The API over `parts`. `metrics` gives the text that `/metrics` serves.
    pub fn new(parts: ApiParts, metrics: RenderMetrics, options: ApiOptions) -> Self {
        let cors = cors::layer(&parts.config.cors_origins);
        let tls = parts.config.behind_tls || parts.config.tls_certificate.is_some();
        let state = ApiState::new(parts, metrics, options);
        let fast_path = FastPathLayer::new(options.delivery.then(|| state.delivery.clone()));
        let service = fast_path.layer(router(&state));
        Self { service, cors, security_headers: SecurityHeaders::new(tls), state }
    }

    /// Passes `draining` to handlers that delay responses.
    pub(crate) fn draining(mut self, draining: Draining) -> Self {
        self.service = self.service.map(|router| router.layer(Extension(draining)));
        self
    }

    /// Samples the queues, if this node reports them. Never ends.
    pub(crate) async fn sample_queues(self) {
        if self.state.options.uploads {
            self.state.queues.run().await;
        } else {
            std::future::pending::<()>().await;
        }
    }

    /// Answers a request.
    pub fn answer<B>(
        &self,
        request: Request<B>,
    ) -> impl Future<Output = Result<Response, Infallible>> + use<B>
    where
        B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + 'static,
    {
        let security_headers = self.security_headers;
        let mut service = self.service.clone();
        let answered = match &self.cors {
            None => Either::Left(service.call(request)),
            Some(cors) => Either::Right(cors.layer(service).call(request)),
        };
        answered.map_ok(move |mut response| {
            security_headers.complete(response.headers_mut());
            response
        })
    }
}

/// The routes behind their middleware.
fn router(state: &ApiState) -> Router {
    let (routes, access) = openapi::routes(state.options).into_parts();
    let (described, document) = routes.with_state(state.clone()).split_for_parts();
    let guard = Guard { state: state.clone(), access: Arc::new(access) };
    described
        .route_layer(from_fn_with_state(guard, guard::enforce))
        .merge(docs::routes(document).with_state(state.clone()))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(state.options)
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(from_fn(request_limits::enforce))
        .layer(from_fn(problem::complete))
        .layer(from_fn(request_log::log))
}

/// What a node answers that is still connecting to its dependencies.
pub fn starting() -> Router {
    let starting = || async { Problem::new(ProblemCode::NotReady, "This node is starting.") };
    let livez = Router::new().route("/livez", get(probes::livez));
    livez.fallback(starting).layer(from_fn(problem::complete))
}

/// Answers for a path that does not exist, or not on this node.
async fn no_such_path(State(options): State<ApiOptions>, request: Request) -> Problem {
    let path = request.uri().path();
    let problem = Problem::new(ProblemCode::NotFound, format!("There is nothing at `{path}`."));
    if !options.uploads && path.starts_with("/v1/") {
        problem.hint("this node does not serve uploads; ask one that does")
    } else if !options.delivery && path.starts_with("/images/") {
        problem.hint("this node does not serve delivery; ask one that does")
    } else {
        problem.hint("`/docs` lists every call")
    }
}

/// Answers for a method that a path does not take; axum adds `Allow`.
async fn no_such_method(request: Request) -> Problem {
    let (method, path) = (request.method(), request.uri().path());
    Problem::new(ProblemCode::MethodNotAllowed, format!("`{path}` does not take {method}."))
}
