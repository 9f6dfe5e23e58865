//! Uploads that are accepted.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::{Request, StatusCode},
};
use futures::stream;
use safelight_blobs::BlobKey;
use safelight_domain::ContentHash;
use safelight_store::QueueCapacity;
use serde_json::json;

use crate::app::{TestApp, fake_png, multipart, multipart_request, task_id};

#[tokio::test]
async fn raw_upload_is_stored_recorded_and_queued() {
    let app = TestApp::new().await;
    let bytes = fake_png(200_000, 1);
    let request = Request::post("/v1/images?title=My%20cat&tags=a,b&tags=c")
        .header("content-disposition", "attachment; filename=\"../cat.png\"");
    let answer = app.send(request, bytes.clone()).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    let receipt = answer.json();
    assert_eq!(answer.header("location"), format!("/v1/tasks/{}", task_id(&receipt)));
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    let image = &receipt["image"];
    assert_eq!(image["sha256"], ContentHash::of(&bytes).to_string());
    assert_eq!(image["bytes"], 200_000);
    assert_eq!(image["format"], "png");
    assert_eq!(image["width"], json!(null));
    assert_eq!(image["title"], "My cat");
    assert_eq!(image["tags"], json!(["a", "b", "c"]));
    assert_eq!(image["filename"], "cat.png");
    assert_eq!(receipt["progress"], json!({"total": 2, "succeeded": 0, "failed": 0}));

    let blob = BlobKey::Blob(ContentHash::of(&bytes));
    let stored = app.parts.blobs.read(&blob, 1 << 20).await.expect("stored bytes");
    assert_eq!(stored, bytes);
    let queued =
        app.parts.store.take_unpublished(&QueueCapacity::each(10), Duration::from_secs(1)).await;
    assert_eq!(queued.expect("the outbox").due.len(), 2);
    // The relay was notified, so this returns immediately.
    app.parts.outbox_signal.notified().await;

    let shown = app.get(answer.header("location")).await.json();
    for member in ["id", "kind", "lane", "status", "progress", "jobs", "error"] {
        assert_eq!(shown[member], receipt[member], "{member}");
    }
    assert_eq!(shown["image"]["sha256"], receipt["image"]["sha256"]);
}

#[tokio::test]
async fn multipart_fields_come_in_any_order() {
    let app = TestApp::new().await;
    let bytes = fake_png(200_000, 2);
    let parts: [(&str, &[u8]); 4] = [
        ("name=\"tags\"", b"x, y"),
        ("name=\"file\"; filename=\"C:\\dir\\a.png\"", &bytes),
        ("name=\"title\"", "Über".as_bytes()),
        ("name=\"tags\"", b"z"),
    ];
    let answer = app.send(multipart_request(), multipart(&parts)).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    let image = &answer.json()["image"];
    assert_eq!(image["sha256"], ContentHash::of(&bytes).to_string());
    assert_eq!(image["title"], "Über");
    assert_eq!(image["tags"], json!(["x", "y", "z"]));
    assert_eq!(image["filename"], "a.png");
}

#[tokio::test]
async fn file_names_are_read_as_clients_write_them() {
    let app = TestApp::new().await;
    // .NET, urllib3 before 1.25, a path in an extended value, bytes in ISO 8859-1.
    let cases: [(&[u8], &str); 4] = [
        (
            b"Name=file; filename=\"=?utf-8?B?w6TDti5wbmc=?=\"; filename*=utf-8''%C3%A4%C3%B6.png",
            "äö.png",
        ),
        (b"name=\"file\"; filename*=utf-8''%C3%A4.png", "ä.png"),
        (b"name=\"file\"; filename*=utf-8''..%2Fdir%5Cb.png", "b.png"),
        (b"name=\"file\"; filename=\"\xE4.png\"", "ä.png"),
    ];
    for (seed, (disposition, expected)) in (0..).zip(cases) {
        let whole = multipart(&[("DISPOSITION", &fake_png(500, seed))]);
        let at = whole.windows(11).position(|found| found == b"DISPOSITION").expect("it is there");
        let body = [&whole[..at], disposition, &whole[at + 11..]].concat();
        let answer = app.send(multipart_request(), body).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{expected}: {}", answer.text());
        assert_eq!(answer.json()["image"]["filename"], expected);
    }
    let request = Request::post("/v1/images")
        .header("content-disposition", "attachment; filename=\"=?utf-8?Q?=C3=A4.png?=\"");
    let answer = app.send(request, fake_png(500, 9)).await;
    assert_eq!(answer.json()["image"]["filename"], "ä.png");
}

#[tokio::test]
async fn ten_megabytes_arrive_in_chunks_of_any_size() {
    let app = TestApp::new().await;
    let bytes = Bytes::from(fake_png(10_000_000, 3));
    let hash = ContentHash::of(&bytes).to_string();
    for size in [7_919, 1 << 20] {
        let chunks: Vec<_> =
            bytes.chunks(size).map(|c| Ok::<_, std::io::Error>(bytes.slice_ref(c))).collect();
        let document = app.upload(Body::from_stream(stream::iter(chunks))).await;
        assert_eq!(document["image"]["sha256"], hash);
    }
    let body = multipart(&[("name=\"file\"; filename=\"a\"", &bytes)]);
    let body = Bytes::from(body);
    let chunks: Vec<_> =
        body.chunks(60_000).map(|c| Ok::<_, std::io::Error>(body.slice_ref(c))).collect();
    let answer = app.send(multipart_request(), Body::from_stream(stream::iter(chunks))).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    assert_eq!(answer.json()["image"]["sha256"], hash);
}

#[tokio::test]
async fn matching_digest_is_accepted() {
    let app = TestApp::new().await;
    let bytes = fake_png(1000, 4);
    let digest = |bytes: &[u8]| {
        use base64::{Engine, engine::general_purpose::STANDARD};
        format!("sha-256=:{}:", STANDARD.encode(ContentHash::of(bytes).as_bytes()))
    };
    let request = Request::post("/v1/images").header("content-digest", digest(&bytes));
    let answer = app.send(request, bytes.clone()).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    // With multipart the digest may be that of the whole body or of the file.
    let body = multipart(&[("name=\"file\"", &bytes)]);
    for digest in [digest(&bytes), digest(&body)] {
        let request = multipart_request().header("content-digest", digest);
        let answer = app.send(request, body.clone()).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.text());
    }
}
