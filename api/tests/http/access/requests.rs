//! Requests that run while a test changes something, and counts of store calls.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{body::Body, http::request::Builder};
use safelight_api::ApiOptions;
use safelight_store::{
    StoreError,
    testing::{Call, FaultPlan, FaultyStore},
};
use tokio::task::JoinHandle;

use crate::app::{TestApp, TestResponse, addressed};

/// Counts the finished calls of one store method.
struct CallCounter(&'static str, Arc<AtomicUsize>);

#[async_trait]
impl FaultPlan for CallCounter {
    async fn before(&self, _: Call<'_>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn after(&self, call: Call<'_>, _: &(dyn Debug + Sync)) -> Result<(), StoreError> {
        if call.method == self.0 {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// An app, and a count of the finished calls of a store method.
pub async fn counting_calls(method: &'static str) -> (TestApp, impl Fn() -> usize) {
    let calls = Arc::new(AtomicUsize::new(0));
    let plan = CallCounter(method, calls.clone());
    let app =
        TestApp::with(&[], ApiOptions::default(), |inner| Arc::new(FaultyStore { inner, plan }))
            .await;
    (app, move || calls.load(Ordering::SeqCst))
}

/// Starts a request whose whole response can be awaited.
pub fn start_request(app: &TestApp, request: Builder) -> JoinHandle<TestResponse> {
    let (api, request) = (app.api.clone(), request.body(Body::empty()));
    tokio::spawn(async move {
        let response =
            api.answer(addressed(request.expect("a request"))).await.expect("a response");
        let (parts, body) = response.into_parts();
        let body = http_body_util::BodyExt::collect(body).await.expect("a body");
        let body = body.to_bytes().to_vec();
        TestResponse { status: parts.status, headers: parts.headers, body }
    })
}

pub async fn ended(waiting: JoinHandle<TestResponse>) -> TestResponse {
    let ended = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    ended.expect("the response ends soon").expect("no panic")
}
