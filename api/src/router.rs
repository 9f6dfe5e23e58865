//! The whole API as one service: the fast path, the middleware, the guard and the routes.

use std::{
    convert::Infallible,
    future::{Future, ready},
    sync::Arc,
};

use axum::{
    Extension, Router,
    body::HttpBody,
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::{from_fn, from_fn_with_state, map_response},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures::{TryFutureExt, future::Either};
use safelight_config::Config;
use tower::{Layer, Service};
use tower_http::{catch_panic::CatchPanicLayer, cors::CorsLayer};

use crate::{
    auth::Client,
    delivery::{FastPath, FastPathLayer},
    guard::{self, Guard},
    http::{
        cors,
        draining::Draining,
        head,
        problem::{self, Problem, ProblemCode},
        request_limits, request_log,
        security_headers::{SecurityHeaders, is_public},
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
        let tls = connects_by_tls(&parts.config);
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

    /// Answers a request of this process itself, which may do everything while there are no keys.
    pub fn answer<B>(
        &self,
        request: Request<B>,
    ) -> impl Future<Output = Result<Response, Infallible>> + use<B>
    where
        B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + 'static,
    {
        self.answer_to(&Client::ThisProcess, request)
    }

    /// Answers a request of `client`.
    pub(crate) fn answer_to<B>(
        &self,
        client: &Client,
        mut request: Request<B>,
    ) -> impl Future<Output = Result<Response, Infallible>> + use<B>
    where
        B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + 'static,
    {
        request.extensions_mut().insert(client.clone());
        let security_headers = self.security_headers;
        let opens_images = self.cors.is_some() && is_for_an_image(&request);
        let mut service = self.service.clone();
        let answered = match (head::rejection(&request), &self.cors) {
            (Some(problem), _) => {
                let mut response = problem::answer(problem, &request);
                request_log::log_rejected(&request, &mut response);
                Either::Left(ready(Ok(response)))
            }
            (None, None) => Either::Right(Either::Left(service.call(request))),
            (None, Some(cors)) => Either::Right(Either::Right(cors.layer(service).call(request))),
        };
        answered.map_ok(move |mut response| {
            let headers = response.headers_mut();
            if opens_images && is_public(headers) {
                cors::open_to_all(headers);
            }
            security_headers.complete(headers);
            response
        })
    }
}

/// Whether clients connect by TLS, to this node or to a proxy in front of it.
pub fn connects_by_tls(config: &Config) -> bool {
    config.behind_tls || config.tls_certificate.is_some()
}

fn is_for_an_image<B>(request: &Request<B>) -> bool {
    request.uri().path().starts_with("/images/")
}

/// The routes behind their middleware.
fn router(state: &ApiState) -> Router {
    let (routes, access) = openapi::routes(state.options).into_parts();
    let (described, document) = routes.with_state(state.clone()).split_for_parts();
    let guard = Guard { state: state.clone(), access: Arc::new(access) };
    described
        .route_layer(from_fn_with_state(guard, guard::enforce))
        .merge(docs::routes(&document))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(state.options)
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(from_fn(request_limits::enforce))
        .layer(from_fn(problem::complete))
        .layer(from_fn(request_log::log))
}

/// What a node answers that is still connecting to its dependencies.
/// Its clients connect by `tls`, or not.
pub fn starting(tls: bool) -> Router {
    let starting = || async { Problem::new(ProblemCode::NotReady, "This node is starting.") };
    let livez = Router::new().route("/livez", get(probes::livez));
    let security_headers = SecurityHeaders::new(tls);
    livez.fallback(starting).layer(from_fn(problem::complete)).layer(map_response(
        move |mut response: Response| async move {
            security_headers.complete(response.headers_mut());
            response
        },
    ))
}

/// Answers for a path that does not exist, or not on this node.
async fn no_such_path(State(options): State<ApiOptions>, request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    // Asked of the server as a whole (RFC 9110, section 9.3.7): it has nothing to tell.
    if *method == Method::OPTIONS && path == "*" {
        return StatusCode::NO_CONTENT.into_response();
    }
    if *method == Method::CONNECT {
        let problem = Problem::new(ProblemCode::MethodNotAllowed, "This server is no proxy.");
        return problem.header(header::ALLOW, HeaderValue::from_static("")).into_response();
    }
    let problem = Problem::new(ProblemCode::NotFound, format!("There is nothing at `{path}`."));
    let hint = if !options.uploads && path.starts_with("/v1/") {
        "this node does not serve uploads; ask one that does"
    } else if !options.delivery && path.starts_with("/images/") {
        "this node does not serve delivery; ask one that does"
    } else {
        "`/docs` lists every call"
    };
    problem.hint(hint).into_response()
}

/// Answers for a method that a path does not take; axum adds `Allow`.
async fn no_such_method(request: Request) -> Problem {
    let (method, path) = (request.method(), request.uri().path());
    Problem::new(ProblemCode::MethodNotAllowed, format!("`{path}` does not take {method}."))
}
