//! The fast path of reads, as a layer in front of the router.
//!
//! Most requests want an image that has just been delivered to another client. They need no route, no waiting
//! and no span, and the middleware would cost more than the response.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use axum::{extract::Request, response::Response};
use futures::future::Either;
use tower::{Layer, Service};

use super::reads::Delivery;
use crate::http::{request_limits, request_log};

/// Adds the fast path to a service.
#[derive(Clone)]
pub struct FastPathLayer {
    delivery: Option<Delivery>,
}

impl FastPathLayer {
    /// From the caches of `delivery`; `None` on a node that does not deliver.
    pub const fn new(delivery: Option<Delivery>) -> Self {
        Self { delivery }
    }
}

impl<S> Layer<S> for FastPathLayer {
    type Service = FastPath<S>;

    fn layer(&self, inner: S) -> FastPath<S> {
        FastPath { inner, delivery: self.delivery.clone() }
    }
}

/// Answers from memory what it can; `inner` answers the rest.
#[derive(Clone)]
pub struct FastPath<S> {
    inner: S,
    delivery: Option<Delivery>,
}

impl<S> FastPath<S> {
    /// The same in front of another service.
    pub fn map<T>(self, change: impl FnOnce(S) -> T) -> FastPath<T> {
        FastPath { inner: change(self.inner), delivery: self.delivery }
    }

    /// The response, if it is ready immediately.
    fn try_cached<B>(&self, request: &Request<B>) -> Option<Response> {
        let delivery = self.delivery.as_ref()?;
        if request_limits::exceeded(request).is_some() {
            return None;
        }
        let mut response = delivery.try_cached(request)?;
        request_log::log_cached(request, &mut response);
        Some(response)
    }
}

impl<S, B> Service<Request<B>> for FastPath<S>
where
    S: Service<Request<B>, Response = Response, Error = Infallible>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response, Infallible>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match self.try_cached(&request) {
            Some(response) => Either::Left(ready(Ok(response))),
            None => Either::Right(self.inner.call(request)),
        }
    }
}
