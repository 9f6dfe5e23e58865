//! The bytes.

use axum::http::{Method, Request};
use safelight_api::ApiOptions;
use safelight_common::{
    blobs::BlobKey,
    domain::{ContentHash, ErrorCode, Failure, JobKind},
};

use crate::bench::{Bench, image_id, picture, task_id};

#[tokio::test]
async fn originals_and_renditions_are_served_for_ever() {
    let bench = Bench::new().await;
    let bytes = picture(300_000, 1);
    let request = Request::post("/v1/images")
        .header("content-disposition", "attachment; filename*=UTF-8''caf%C3%A9.png");
    let document = bench.send(request, bytes.clone()).await.json();
    let (task, image) = (task_id(&document), image_id(&document));
    bench.write(task).await;
    bench.render(task, b"a small picture").await;
    let original = bench.get(&format!("/images/{image}")).await;
    assert_eq!(original.body, bytes);
    assert_eq!(original.header("content-type"), "image/png");
    assert_eq!(
        original.header("content-disposition"),
        "inline; filename=\"caf_.png\"; filename*=UTF-8''caf%C3%A9.png"
    );
    let small = bench.get(&format!("/images/{image}/small")).await;
    assert_eq!(small.body, b"a small picture");
    assert_eq!(small.header("content-type"), "image/jpeg");
    for (path, answer) in
        [(format!("/images/{image}"), original), (format!("/images/{image}/small"), small)]
    {
        assert_eq!(answer.header("etag"), format!("\"{}\"", ContentHash::of(&answer.body)));
        assert_eq!(answer.header("content-length"), answer.body.len().to_string());
        assert_eq!(answer.header("cache-control"), "public, max-age=31536000, immutable");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("content-security-policy"), "default-src 'none'; sandbox");
        assert_eq!(answer.header("cross-origin-resource-policy"), "cross-origin");
        let tags = format!("\"other\", W/{}", answer.header("etag"));
        for known in ["*", &tags] {
            let request = Request::get(&path).header("if-none-match", known);
            let unchanged = bench.send(request, "").await;
            assert_eq!(unchanged.status.as_u16(), 304);
            assert_eq!(unchanged.header("etag"), answer.header("etag"));
            assert!(unchanged.body.is_empty());
        }
        let request = Request::builder().method(Method::HEAD).uri(&path);
        let head = bench.send(request, "").await;
        assert_eq!(head.status.as_u16(), 200);
        assert_eq!(head.header("content-length"), answer.header("content-length"));
        assert!(head.body.is_empty());
    }
}

#[tokio::test]
async fn what_is_not_there_says_whether_it_will_be() {
    let bench = Bench::new().await;
    let document = bench.upload(picture(500, 1)).await;
    let (task, image) = (task_id(&document), image_id(&document));
    let (original, small) = (format!("/images/{image}"), format!("/images/{image}/small"));
    for path in [&original, &small] {
        bench.get(path).await.assert_problem(503, "image_not_ready");
    }
    bench.write(task).await;
    assert_eq!(bench.get(&original).await.status.as_u16(), 200);
    let failure = Failure::new(ErrorCode::CorruptImage, "the data ends early");
    bench.fail(task, JobKind::Thumbnail, failure).await;
    let problem = bench.get(&small).await.assert_problem(404, "image_failed");
    assert_eq!(problem["reason"], "corrupt_image");
}

#[tokio::test]
async fn nodes_serve_what_they_are_for() {
    let delivery = ApiOptions { uploads: false, delivery: true };
    let bench = Bench::with(&[], delivery, |store| store).await;
    let answer = bench.send(Request::post("/v1/images"), picture(500, 1)).await;
    let problem = answer.assert_problem(404, "not_found");
    assert!(problem["hint"].as_str().is_some_and(|hint| hint.contains("does not serve uploads")));
    let document = bench.get("/openapi.json").await.json();
    assert!(document["paths"]["/v1/images"].is_null());
    let uploads = ApiOptions { uploads: true, delivery: false };
    let bench = Bench::with(&[], uploads, |store| store).await;
    let image = image_id(&bench.upload(picture(500, 1)).await);
    bench.get(&format!("/images/{image}")).await.assert_problem(404, "not_found");
    assert_eq!(bench.get("/livez").await.status.as_u16(), 200);
}

#[tokio::test]
async fn damaged_bytes_are_not_passed_off_as_the_image() {
    let bench = Bench::new().await;
    let document = bench.upload(picture(5_000, 1)).await;
    let (task, image) = (task_id(&document), image_id(&document));
    let stored = bench.write(task).await;
    let (blobs, key) = (&bench.services.blobs, BlobKey::Blob(stored.sha256));
    blobs.put(&key, "cut short".into()).await.expect("damage it");
    let path = format!("/images/{image}");
    let answer = bench.get(&path).await;
    assert_eq!(answer.header("cache-control"), "no-store");
    answer.assert_problem(500, "blob_damaged");
    blobs.delete(&key).await.expect("lose it");
    bench.get(&path).await.assert_problem(500, "blob_damaged");
}
