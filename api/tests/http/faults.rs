//! The store failing at the worst moments.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use axum::http::Request;
use safelight_api::ApiOptions;
use safelight_store::testing::FaultyStore;

use crate::{
    bench::{Bench, image_id, picture, until},
    flaky::{Fault, Flaky},
};

async fn flaky() -> (Bench, Arc<AtomicU8>) {
    let fault = Arc::new(AtomicU8::new(Fault::None as u8));
    let handle = fault.clone();
    let bench = Bench::with(&[], ApiOptions::default(), move |inner| {
        Arc::new(FaultyStore { inner, plan: Flaky(handle) })
    });
    (bench.await, fault)
}

fn keyed() -> axum::http::request::Builder {
    Request::post("/v1/images").header("idempotency-key", "k")
}

#[tokio::test]
async fn an_accept_whose_answer_was_lost_is_accepted() {
    let (bench, fault) = flaky().await;
    fault.store(Fault::AcceptUnheard as u8, Ordering::SeqCst);
    let answer = bench.send(keyed(), picture(500, 1)).await;
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
    let image = image_id(&answer.json());
    assert_eq!(bench.incoming(), [image.to_string()]);
    let again = bench.send(keyed(), picture(500, 1)).await;
    assert_eq!(image_id(&again.json()), image);
}

#[tokio::test]
async fn an_accept_that_certainly_failed_leaves_nothing() {
    let (bench, fault) = flaky().await;
    fault.store(Fault::AcceptRefused as u8, Ordering::SeqCst);
    bench.send(keyed(), picture(500, 1)).await.assert_problem(500, "internal");
    bench.until_nothing_is_staged().await;
    fault.store(Fault::None as u8, Ordering::SeqCst);
    until(async || bench.send(keyed(), picture(500, 2)).await.status.as_u16() == 202).await;
}

#[tokio::test]
async fn bytes_stay_while_nobody_knows_whether_they_are_needed() {
    let (bench, fault) = flaky().await;
    bench.get("/v1/images").await;
    fault.store(Fault::Away as u8, Ordering::SeqCst);
    let answer = bench.send(Request::post("/v1/images"), picture(500, 1)).await;
    answer.assert_problem(503, "database_unavailable");
    assert_eq!(bench.incoming().len(), 1);
}

#[tokio::test]
async fn an_absent_database_is_a_problem_with_a_retry() {
    let (bench, fault) = flaky().await;
    let document = bench.upload(picture(500, 1)).await;
    fault.store(Fault::Away as u8, Ordering::SeqCst);
    let image = image_id(&document);
    for path in ["/v1/tasks".to_owned(), format!("/v1/images/{image}"), format!("/images/{image}")]
    {
        bench.get(&path).await.assert_problem(503, "database_unavailable");
    }
    bench.send(keyed(), picture(500, 1)).await.assert_problem(503, "database_unavailable");
    let problem = bench.get("/readyz").await.assert_problem(503, "not_ready");
    assert_eq!(problem["parts"]["database"], "down");
    assert_eq!(problem["parts"]["blobs"], "up");
    // Scrapes go on with what is known.
    assert_eq!(bench.get("/metrics").await.status.as_u16(), 200);
}

#[tokio::test]
async fn without_the_database_nothing_is_said_of_the_fleet() {
    let (bench, fault) = flaky().await;
    fault.store(Fault::Away as u8, Ordering::SeqCst);
    for path in ["/v1/workers", "/v1/queues"] {
        bench.get(path).await.assert_problem(503, "database_unavailable");
    }
    fault.store(Fault::None as u8, Ordering::SeqCst);
    for path in ["/v1/workers", "/v1/queues"] {
        assert_eq!(bench.get(path).await.status.as_u16(), 200, "{path}");
    }
}
