//! The first to see a request. A picture that is at hand is answered on the spot; everything else
//! takes its way through the router.

use std::{
    convert::Infallible,
    future::{Future, ready},
};

use axum::{Extension, Router, body::HttpBody, extract::Request, middleware, response::Response};
use bytes::Bytes;
use futures::future::Either;
use safelight_common::services::Services;
use tower::Service;
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    ApiOptions, access, observe, openapi, problem,
    state::{ApiState, Draining, RenderMetrics},
};

/// The whole API, ready to be served. Clones share it.
#[derive(Clone)]
pub struct Api {
    router: Router,
    state: ApiState,
}

impl Api {
    /// The API over `services`. `metrics` gives the text that `/metrics` serves.
    pub fn new(services: Services, metrics: RenderMetrics, options: ApiOptions) -> Self {
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
            .layer(middleware::from_fn(problem::complete))
            .layer(middleware::from_fn(observe::observe));
        Self { router, state }
    }

    /// Tells handlers that hold answers back when the server wants to end.
    pub(crate) fn draining(self, draining: Draining) -> Self {
        Self { router: self.router.layer(Extension(draining)), ..self }
    }

    /// Watches the queues, if this node tells of them. Never ends.
    pub(crate) async fn watch_queues(self) {
        if self.state.options().uploads {
            self.state.sampler.keep(&self.state.services.store).await;
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
        match self.at_once(&request) {
            Some(response) => Either::Left(ready(Ok(response))),
            None => Either::Right(self.router.clone().call(request)),
        }
    }

    /// Most requests want a picture that has just been delivered to somebody else. They need no
    /// route, no waiting and no span, and the middlewares would cost more than the picture.
    fn at_once<B>(&self, request: &Request<B>) -> Option<Response> {
        if !self.state.options().delivery {
            return None;
        }
        let mut response = self.state.delivery.at_hand(request)?;
        observe::note(request, &mut response);
        Some(response)
    }
}
