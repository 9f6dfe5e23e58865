//! The store fails at the worst moments.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use axum::http::Request;
use safelight_api::ApiOptions;
use safelight_store::testing::FaultyStore;

use crate::{
    app::{TestApp, eventually, fake_png, image_id},
    fault_switch::{Fault, FaultSwitch},
};

async fn app_with_faults() -> (TestApp, Arc<AtomicU8>) {
    let fault = Arc::new(AtomicU8::new(Fault::None as u8));
    let handle = fault.clone();
    let app = TestApp::with(&[], ApiOptions::default(), move |inner| {
        Arc::new(FaultyStore { inner, plan: FaultSwitch(handle) })
    });
    (app.await, fault)
}

fn keyed() -> axum::http::request::Builder {
    Request::post("/v1/images").header("idempotency-key", "k")
}

#[tokio::test]
async fn upload_with_a_lost_accept_response_is_accepted() {
    let (app, fault) = app_with_faults().await;
    fault.store(Fault::AcceptResponseLost as u8, Ordering::SeqCst);
    let answer = app.send(keyed(), fake_png(500, 1)).await;
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
    let image = image_id(&answer.json());
    assert_eq!(app.originals().len(), 1);
    let again = app.send(keyed(), fake_png(500, 1)).await;
    assert_eq!(image_id(&again.json()), image);
}

#[tokio::test]
async fn failed_accept_removes_its_bytes() {
    let (app, fault) = app_with_faults().await;
    fault.store(Fault::AcceptFails as u8, Ordering::SeqCst);
    app.send(keyed(), fake_png(500, 1)).await.assert_problem(500, "internal");
    assert_eq!(app.originals().len(), 0);
    assert_eq!(app.trash(), Vec::<String>::new());
    fault.store(Fault::None as u8, Ordering::SeqCst);
    eventually(async || app.send(keyed(), fake_png(500, 2)).await.status.as_u16() == 202).await;
}

#[tokio::test]
async fn stored_bytes_stay_while_the_outcome_of_an_accept_is_unknown() {
    let (app, fault) = app_with_faults().await;
    app.get("/v1/images").await;
    fault.store(Fault::Unavailable as u8, Ordering::SeqCst);
    let answer = app.send(Request::post("/v1/images"), fake_png(500, 1)).await;
    answer.assert_problem(503, "database_unavailable");
    assert_eq!(app.originals().len(), 1);
}

#[tokio::test]
async fn unavailable_database_answers_503_with_retry_after() {
    let (app, fault) = app_with_faults().await;
    let document = app.upload(fake_png(500, 1)).await;
    fault.store(Fault::Unavailable as u8, Ordering::SeqCst);
    let image = image_id(&document);
    for path in ["/v1/tasks".to_owned(), format!("/v1/images/{image}"), format!("/images/{image}")]
    {
        app.get(&path).await.assert_problem(503, "database_unavailable");
    }
    app.send(keyed(), fake_png(500, 1)).await.assert_problem(503, "database_unavailable");
    let problem = app.get("/readyz").await.assert_problem(503, "not_ready");
    assert_eq!(problem["parts"]["database"], "down");
    assert_eq!(problem["parts"]["blobs"], "up");
    // Metrics stay available.
    assert_eq!(app.get("/metrics").await.status.as_u16(), 200);
}

#[tokio::test]
async fn without_the_database_workers_and_queues_answer_503() {
    let (app, fault) = app_with_faults().await;
    fault.store(Fault::Unavailable as u8, Ordering::SeqCst);
    for path in ["/v1/workers", "/v1/queues"] {
        app.get(path).await.assert_problem(503, "database_unavailable");
    }
    fault.store(Fault::None as u8, Ordering::SeqCst);
    for path in ["/v1/workers", "/v1/queues"] {
        assert_eq!(app.get(path).await.status.as_u16(), 200, "{path}");
    }
}
