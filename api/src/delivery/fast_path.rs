//! The first to see a request. A picture that is at hand is answered on the spot; everything else
//! takes its way through the router.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    task::{Context, Poll},
};

use axum::{
    Extension, Router, body::HttpBody, extract::Request, middleware, response::Response,
    routing::future::RouteFuture,
};
use bytes::Bytes;
use futures::{TryFutureExt, future::Either};
use safelight_services::Services;
use tower::{Layer, Service};
use tower_http::{catch_panic::CatchPanicLayer, cors::CorsLayer};

use crate::{
    ApiOptions, access, cors, head,
    headers::Guard,
    observe, openapi, problem,
    state::{ApiState, Draining, RenderMetrics},
};

/// The whole API, ready to be served. Clones share it.
#[derive(Clone)]
pub struct Api {
    front: Front,
    cors: Option<CorsLayer>,
    guard: Guard,
}

impl Api {
    /// The API over `services`. `metrics` gives the text that `/metrics` serves.
    pub fn new(services: Services, metrics: RenderMetrics, options: ApiOptions) -> Self {
        let cors = cors::layer(&services.config.cors_origins);
        let tls = services.config.behind_tls || services.config.tls_certificate.is_some();
        let state = ApiState::new(services, metrics, options);
        let (described, mut document) =
            openapi::routes(options).with_state(state.clone()).split_for_parts();
        access::document(&mut document);
        let guard = middleware::from_fn_with_state(state.clone(), access::guard);
        let router = described
            .route_layer(guard)
            .merge(openapi::description(document))
            .fallback(problem::no_such_path)
            .method_not_allowed_fallback(problem::no_such_method)
            .with_state(state.clone())
            .layer(CatchPanicLayer::custom(problem::panicked))
            .layer(middleware::from_fn(head::enforce))
            .layer(middleware::from_fn(problem::complete))
            .layer(middleware::from_fn(observe::observe));
        Self { front: Front { router, state }, cors, guard: Guard::new(tls) }
    }

    /// Tells handlers that hold answers back when the server wants to end.
    pub(crate) fn draining(mut self, draining: Draining) -> Self {
        self.front.router = self.front.router.layer(Extension(draining));
        self
    }

    /// Watches the queues, if this node tells of them. Never ends.
    pub(crate) async fn watch_queues(self) {
        let state = self.front.state;
        if state.options().uploads {
            state.sampler.keep(&state.services.store).await;
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
        let guard = self.guard;
        let mut front = self.front.clone();
        let answered = match &self.cors {
            None => Either::Left(front.call(request)),
            Some(cors) => Either::Right(cors.layer(front).call(request)),
        };
        answered.map_ok(move |mut response| {
            guard.complete(response.headers_mut());
            response
        })
    }
}

/// The router, and what can be answered before it.
#[derive(Clone)]
struct Front {
    router: Router,
    state: ApiState,
}

impl<B> Service<Request<B>> for Front
where
    B: HttpBody<Data = Bytes, Error: Into<axum::BoxError>> + Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response, Infallible>>, RouteFuture<Infallible>>;

    /// A router is always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.at_once(&request) {
            Some(response) => Either::Left(ready(Ok(response))),
            None => Either::Right(self.router.call(request)),
        }
    }
}

impl Front {
    /// Most requests want a picture that has just been delivered to somebody else. They need no
    /// route, no waiting and no span, and the middlewares would cost more than the picture.
    fn at_once<B>(&self, request: &Request<B>) -> Option<Response> {
        if !self.state.options().delivery || head::exceeded(request).is_some() {
            return None;
        }
        let mut response = self.state.delivery.at_hand(request)?;
        observe::note(request, &mut response);
        Some(response)
    }
}
