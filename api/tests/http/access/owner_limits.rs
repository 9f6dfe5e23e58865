//! What an owner may send and store: quota, rates, and its share of the uploads in flight.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{Request, request::Builder},
};
use futures::stream;
use serde_json::json;
use tokio::{sync::oneshot, task::JoinHandle};

use super::Key;
use crate::app::{TestApp, addressed, fake_png, task_id};

#[tokio::test]
async fn full_quota_rejects_uploads_until_an_image_is_cancelled() {
    let app = TestApp::configured(&[("SAFELIGHT_OWNERS", "{ ada = { quota_images = 1 } }")]).await;
    let ada = app.key("ada", "upload,read").await;
    let upload = ada.upload(&app, "").await;
    let again = async || app.send(ada.on(Request::post("/v1/images")), fake_png(9, 2)).await;
    let rejected = again().await.assert_problem(403, "over_quota");
    assert_eq!((&rejected["used_images"], &rejected["quota_images"]), (&json!(1), &json!(1)));
    let limits = ada.get(&app, "/v1/limits").await.json();
    assert_eq!(limits["owner"], "ada");
    assert_eq!(limits["quota"]["used_bytes"], 100);
    let others = app.key("bob", "upload").await;
    others.upload(&app, "").await;

    let cancel = ada.on(Request::post(format!("/v1/tasks/{}/cancel", task_id(&upload))));
    app.send(cancel, Body::empty()).await;
    assert_eq!(again().await.status.as_u16(), 202);
}

/// Without a declared length, only the transaction can tell that the quota has no room.
#[tokio::test]
async fn bytes_beyond_the_quota_are_removed_unless_they_are_somebodys() {
    let app = TestApp::configured(&[("SAFELIGHT_OWNERS", "{ ada = { quota_bytes = 150 } }")]).await;
    let (ada, bob) = (app.key("ada", "upload").await, app.key("bob", "upload").await);
    ada.upload(&app, "").await;
    let of_bob = fake_png(100, 7);
    app.send(bob.on(Request::post("/v1/images")), of_bob.clone()).await;
    let known = app.originals();
    assert_eq!(known.len(), 2);
    let rejected = async |bytes: Vec<u8>| {
        let body = Body::from_stream(stream::iter([Ok::<_, Infallible>(bytes)]));
        app.send(ada.on(Request::post("/v1/images")), body).await.assert_problem(403, "over_quota");
    };
    rejected(fake_png(100, 9)).await;
    rejected(of_bob).await;
    assert_eq!((app.originals(), app.trash()), (known, Vec::new()));
    app.parts.store.keep_unknown(Duration::from_mins(1)).await.expect("kept");
    rejected(fake_png(100, 9)).await;
    assert_eq!(app.originals().len(), 3, "this database may not know the image that has them");
}

#[tokio::test]
async fn rates_are_reported_and_enforced() {
    let keys = [("SAFELIGHT_REQUESTS_PER_MINUTE", "5"), ("SAFELIGHT_UPLOADS_PER_MINUTE", "2")];
    let app = TestApp::configured(&keys).await;
    let ada = app.key("ada", "upload,read").await;
    for left in [1, 0] {
        let request = ada.on(Request::post("/v1/images"));
        let answer = app.send(request, fake_png(100, 1)).await;
        assert_eq!(answer.status.as_u16(), 202);
        let rates: Vec<_> = answer.headers.get_all("ratelimit").iter().collect();
        assert_eq!(rates.len(), 2);
        let uploads = rates[1].to_str().expect("text");
        // In at most half a minute there is one more.
        let lines = [29, 30].map(|seconds| format!("\"uploads\";r={left};t={seconds}"));
        assert!(lines.iter().any(|line| line == uploads), "{uploads}");
    }
    let rejected = app.send(ada.on(Request::post("/v1/images")), fake_png(100, 1)).await;
    assert_eq!(rejected.status.as_u16(), 429, "{}", rejected.text());
    let wait: u64 = rejected.header("retry-after").parse().expect("seconds");
    assert!((29..=30).contains(&wait), "{wait}");
    assert_eq!(rejected.header("ratelimit-policy"), "\"uploads\";q=2;w=60");
    assert_eq!(rejected.header("ratelimit"), format!("\"uploads\";r=0;t={wait}"));
    for _ in 0..2 {
        assert_eq!(ada.get(&app, "/v1/images").await.status.as_u16(), 200);
    }
    assert_eq!(ada.get(&app, "/v1/images").await.status.as_u16(), 429);
    let bob = app.key("bob", "read").await;
    assert_eq!(bob.get(&app, "/v1/images").await.status.as_u16(), 200, "limits are per owner");
}

/// An upload whose body sends nothing until it is released.
struct SlowUpload {
    release: oneshot::Sender<()>,
    answer: JoinHandle<u16>,
}

impl SlowUpload {
    /// Starts the upload, and waits until the server reads its body.
    async fn start(app: &TestApp, request: Builder) -> Self {
        let ((release, released), (reading, is_reading)) = (oneshot::channel(), oneshot::channel());
        let body = stream::once(async move {
            let _ = reading.send(());
            let _ = released.await;
            Ok::<_, Infallible>(Bytes::from(fake_png(500, 1)))
        });
        let (api, request) = (app.api.clone(), request.body(Body::from_stream(body)));
        let answer = tokio::spawn(async move {
            let answered = api.answer(addressed(request.expect("a request"))).await;
            answered.expect("a response").status().as_u16()
        });
        is_reading.await.expect("the body is being read");
        Self { release, answer }
    }

    async fn finish(self) -> u16 {
        self.release.send(()).expect("still waiting");
        self.answer.await.expect("no panic")
    }
}

#[tokio::test]
async fn owner_gets_at_most_its_share_of_the_uploads_in_flight() {
    let keys = [
        ("SAFELIGHT_MAX_UPLOADS_IN_FLIGHT", "4"),
        ("SAFELIGHT_OWNERS", "{ eve = { max_uploads_in_flight_per_owner = 1 } }"),
    ];
    let app = TestApp::configured(&keys).await;
    let owners = ["ada", "bob", "eve"];
    let [ada, bob, eve] = owners.map(|owner| app.key(owner, "upload,read"));
    let (ada, bob, eve) = (ada.await, bob.await, eve.await);
    let post = |key: &Key| key.on(Request::post("/v1/images"));
    let mut slow = Vec::new();
    for _ in 0..2 {
        slow.push(SlowUpload::start(&app, post(&ada)).await);
    }
    let rejected = app.send(post(&ada), fake_png(500, 2)).await;
    rejected.assert_problem(429, "too_many_own_uploads");
    assert_eq!(rejected.header("retry-after"), "1");
    bob.upload(&app, "").await;
    slow.push(SlowUpload::start(&app, post(&eve)).await);
    let rejected = app.send(post(&eve), fake_png(500, 2)).await;
    rejected.assert_problem(429, "too_many_own_uploads");
    // One permit is left, then none.
    slow.push(SlowUpload::start(&app, post(&bob)).await);
    app.send(post(&bob), fake_png(500, 2)).await.assert_problem(503, "too_many_uploads");
    for upload in slow {
        assert_eq!(upload.finish().await, 202);
    }
    ada.upload(&app, "").await;
    for (key, share) in [(&ada, 2), (&eve, 1)] {
        let limits = key.get(&app, "/v1/limits").await.json();
        assert_eq!(limits["max_uploads_in_flight"], share);
    }
}

#[tokio::test]
async fn without_keys_one_client_may_use_all_upload_permits() {
    let app = TestApp::configured(&[("SAFELIGHT_MAX_UPLOADS_IN_FLIGHT", "2")]).await;
    let post = || Request::post("/v1/images");
    let slow = [SlowUpload::start(&app, post()).await, SlowUpload::start(&app, post()).await];
    app.send(post(), fake_png(500, 2)).await.assert_problem(503, "too_many_uploads");
    assert_eq!(app.get("/v1/limits").await.json()["max_uploads_in_flight"], 2);
    for upload in slow {
        assert_eq!(upload.finish().await, 202);
    }
}
