//! `Idempotency-Key`.

use axum::{
    body::{Body, Bytes},
    http::{Request, request::Builder},
};
use futures::stream;
use safelight_blobs::BlobKey;
use safelight_domain::{ContentHash, ErrorCode, Failure, JobKind};

use crate::app::{TestApp, addressed, eventually, fake_png, multipart, multipart_request, task_id};

fn keyed(key: &str) -> Builder {
    Request::post("/v1/images").header("idempotency-key", key)
}

#[tokio::test]
async fn same_payload_returns_the_same_task() {
    let app = TestApp::new().await;
    let first = app.send(keyed("a"), fake_png(5000, 1)).await;
    assert_eq!(first.status.as_u16(), 202);
    let task = task_id(&first.json());
    app.claim(task, JobKind::Write).await;
    let again = app.send(keyed("a"), fake_png(5000, 1)).await;
    assert_eq!(again.status.as_u16(), 202);
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(first.header("idempotent-replayed"), "");
    assert_eq!(again.header("idempotent-replayed"), "true");
    // With quotes it is the same key (a structured field).
    let quoted = app.send(keyed("\"a\""), fake_png(5000, 1)).await;
    assert_eq!(quoted.header("location"), first.header("location"));
    assert_eq!(quoted.header("idempotent-replayed"), "true");
    // The response shows the current state of the task.
    assert_eq!(again.json()["status"], "running");
    assert_eq!(app.originals().len(), 1);
    assert_eq!(app.get("/v1/tasks").await.json()["tasks"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn different_payload_is_rejected() {
    let app = TestApp::new().await;
    let bytes = fake_png(5000, 1);
    assert_eq!(app.send(keyed("a"), bytes.clone()).await.status.as_u16(), 202);
    app.send(keyed("a"), fake_png(5000, 2)).await.assert_problem(422, "idempotency_key_reused");
    let named = keyed("a").header("content-disposition", "attachment; filename=x.png");
    app.send(named, bytes.clone()).await.assert_problem(422, "idempotency_key_reused");
    let titled = keyed("a").uri("/v1/images?title=x");
    app.send(titled, bytes.clone()).await.assert_problem(422, "idempotency_key_reused");
    // The same payload in a multipart body is the same payload.
    let wrapped = multipart_request().header("idempotency-key", "a");
    let answer = app.send(wrapped, multipart(&[("name=\"file\"", &bytes)])).await;
    assert_eq!(answer.status.as_u16(), 202);
    // A replay is checked like an upload.
    app.send(keyed("a"), Body::empty()).await.assert_problem(400, "empty_body");
}

#[tokio::test]
async fn key_in_flight_conflicts_until_its_client_disconnects() {
    let app = TestApp::new().await;
    let (reading, is_reading) = tokio::sync::oneshot::channel::<()>();
    let body = stream::once(async move {
        let _ = reading.send(());
        std::future::pending::<Result<Bytes, std::io::Error>>().await
    });
    let request = keyed("a").body(Body::from_stream(body)).expect("a request");
    let slow = tokio::spawn(app.api.answer(addressed(request)));
    is_reading.await.expect("the first upload is being received");
    app.send(keyed("a"), fake_png(500, 1)).await.assert_problem(409, "idempotency_key_in_flight");
    slow.abort();
    eventually(async || app.send(keyed("a"), fake_png(500, 1)).await.status.as_u16() == 202).await;
}

#[tokio::test]
async fn rejected_upload_releases_its_key() {
    let app = TestApp::new().await;
    let text = b"this is only some text and not an image at all".to_vec();
    app.send(keyed("a"), text).await.assert_problem(415, "unsupported_media_type");
    eventually(async || app.send(keyed("a"), fake_png(500, 1)).await.status.as_u16() == 202).await;
}

/// The database recorded the upload so late that a collection of garbage had removed its bytes, and the client had no answer.
#[tokio::test]
async fn repeated_upload_replaces_bytes_that_are_gone() {
    let app = TestApp::new().await;
    let bytes = fake_png(5000, 1);
    let task = task_id(&app.send(keyed("a"), bytes.clone()).await.json());
    let path = app.blob_file(&BlobKey::Blob(ContentHash::of(&bytes)));
    std::fs::remove_file(&path).expect("removed");
    // Only by the payload that was accepted.
    app.send(keyed("a"), fake_png(5000, 2)).await.assert_problem(422, "idempotency_key_reused");
    eventually(async || app.incoming().is_empty()).await;
    let again = app.send(keyed("a"), bytes.clone()).await;
    assert_eq!((again.status.as_u16(), again.header("idempotent-replayed")), (202, "true"));
    assert_eq!(std::fs::read(&path).expect("stored again"), bytes);

    std::fs::remove_file(&path).expect("removed");
    for kind in [JobKind::Write, JobKind::Thumbnail] {
        app.fail(task, kind, Failure::new(ErrorCode::BlobMissing, "gone")).await;
    }
    let again = app.send(keyed("a"), bytes.clone()).await;
    assert_eq!(again.json()["status"], "queued", "its jobs are repeated");
    assert_eq!(std::fs::read(&path).expect("stored again"), bytes);
}
