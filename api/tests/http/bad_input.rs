//! Invalid requests, each with its status and problem code.

use axum::{
    body::{Body, Bytes},
    http::Request,
};
use futures::stream;
use safelight_domain::{ImageId, TaskId};

use crate::app::{TestApp, addressed, fake_png, multipart, multipart_request};

/// Small, so that tests can exceed it.
const LIMIT: (&str, &str) = ("SAFELIGHT_MAX_UPLOAD_BYTES", "10000");

#[tokio::test]
async fn bad_paths_methods_ids_and_queries_are_rejected() {
    let app = TestApp::new().await;
    let (task, image) = (TaskId::new(), ImageId::new());
    let upper = task.to_string().to_uppercase();
    let cases = [
        ("GET", "/".to_owned(), 404, "not_found"),
        ("GET", "/v1/nothing".to_owned(), 404, "not_found"),
        ("GET", "/docs/nothing".to_owned(), 404, "not_found"),
        ("DELETE", "/v1/images".to_owned(), 405, "method_not_allowed"),
        ("POST", format!("/v1/tasks/{task}"), 405, "method_not_allowed"),
        ("POST", format!("/images/{image}"), 405, "method_not_allowed"),
        ("BREW", "/livez".to_owned(), 405, "method_not_allowed"),
        ("GET", format!("/v1/tasks/{task}"), 404, "task_not_found"),
        ("GET", format!("/v1/tasks/{upper}"), 404, "task_not_found"),
        ("GET", "/v1/tasks/x".to_owned(), 404, "task_not_found"),
        ("GET", "/v1/tasks/%ff".to_owned(), 404, "task_not_found"),
        ("GET", format!("/v1/tasks/{task}/events"), 404, "task_not_found"),
        ("GET", format!("/v1/images/{image}"), 404, "image_not_found"),
        ("GET", "/v1/images/..%2f..%2fetc".to_owned(), 404, "image_not_found"),
        ("GET", format!("/images/{image}"), 404, "image_not_found"),
        ("GET", format!("/images/{image}/small"), 404, "image_not_found"),
        ("GET", format!("/images/{image}/giant"), 404, "preset_not_found"),
        ("GET", "/v1/tasks?limit=0".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/tasks?limit=501".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/tasks?limit=-1".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/tasks?limit=ten".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/tasks?limit=1&limit=2".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/tasks?status=done".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/tasks?kind=none".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/tasks?stauts=failed".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/tasks?cursor=%00".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/tasks?cursor=abc".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/images?limit=501".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/images?cursor=abc".to_owned(), 400, "invalid_query"),
        ("GET", "/v1/images?status=failed".to_owned(), 400, "invalid_query"),
    ];
    for (method, path, status, code) in cases {
        let answer = app.send(Request::builder().method(method).uri(&path), Body::empty()).await;
        let problem = answer.assert_problem(status, code);
        assert_eq!(problem["instance"], path.split('?').next().unwrap_or_default(), "{path}");
        assert_eq!(answer.header("allow").is_empty(), status != 405, "{method} {path}");
        assert_eq!(answer.header("cache-control"), "no-store");
    }
    let problem = app.get(&format!("/images/{image}/giant")).await.json();
    assert_eq!(problem["presets"], serde_json::json!(["large", "medium", "small"]));
}

#[tokio::test]
async fn uploads_with_bad_headers_and_fields_are_rejected() {
    let app = TestApp::configured(&[LIMIT]).await;
    let long_key = "k".repeat(256);
    let many_tags = (0..33).map(|n| format!("t{n}")).collect::<Vec<_>>().join(",");
    let long_title = format!("/v1/images?title={}", "x".repeat(501));
    let many_tags = format!("/v1/images?tags={many_tags}");
    let plain = "/v1/images";
    let cases = [
        (plain, "idempotency-key", "", 400, "invalid_idempotency_key"),
        (plain, "idempotency-key", "a b", 400, "invalid_idempotency_key"),
        (plain, "idempotency-key", &long_key, 400, "invalid_idempotency_key"),
        (plain, "content-digest", "sha-256", 400, "invalid_digest"),
        (plain, "content-digest", "sha-256=:AAAA:", 400, "invalid_digest"),
        (plain, "content-digest", "md5=:AAAA:", 400, "unsupported_digest"),
        (
            plain,
            "content-digest",
            "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:",
            400,
            "digest_mismatch",
        ),
        (plain, "repr-digest", "sha-256", 400, "invalid_digest"),
        (
            plain,
            "repr-digest",
            "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:",
            400,
            "digest_mismatch",
        ),
        (plain, "idempotency-key", "\"open", 400, "invalid_idempotency_key"),
        (plain, "content-encoding", "gzip", 415, "unsupported_media_type"),
        (plain, "content-type", "multipart/form-data", 400, "invalid_multipart"),
        ("/v1/images?name=x", "x-any", "", 400, "invalid_query"),
        ("/v1/images?title=a&title=b", "x-any", "", 400, "invalid_query"),
        ("/v1/images?title=a%00b", "x-any", "", 400, "invalid_field"),
        ("/v1/images?title=a%E2%80%AEb", "x-any", "", 400, "invalid_field"),
        ("/v1/images?tags=a%E2%81%A7b", "x-any", "", 400, "invalid_field"),
        (&long_title, "x-any", "", 400, "invalid_field"),
        (&many_tags, "x-any", "", 400, "invalid_field"),
    ];
    for (path, name, value, status, code) in cases {
        let answer = app.send(Request::post(path).header(name, value), fake_png(500, 1)).await;
        let problem = answer.assert_problem(status, code);
        let wants = answer.header("want-content-digest");
        assert_eq!(wants == "sha-256=1", code == "unsupported_digest", "{problem}");
    }
    app.eventually_nothing_is_staged().await;
    assert!(app.originals().is_empty());
}

#[tokio::test]
async fn uploads_with_bad_bodies_are_rejected() {
    let app = TestApp::configured(&[LIMIT, ("SAFELIGHT_HEIC", "false")]).await;
    let html = b"<!doctype html><script>alert(1)</script>".to_vec();
    let heic = b"\0\0\0\x1cftypheic\0\0\0\0heicmif1miaf\0\0\0\0\0\0".to_vec();
    let cases = [
        (Vec::new(), 400, "empty_body"),
        (html, 415, "unsupported_media_type"),
        (b"short".to_vec(), 415, "unsupported_media_type"),
        (heic, 415, "unsupported_media_type"),
        (fake_png(10_001, 1), 413, "upload_too_large"),
    ];
    for (body, status, code) in cases {
        app.send(Request::post("/v1/images"), body).await.assert_problem(status, code);
    }
    // A body without a length is stopped at the limit.
    let chunk = Bytes::from(fake_png(4000, 1));
    let endless = stream::iter((0..1000).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
    let answer = app.send(Request::post("/v1/images"), Body::from_stream(endless)).await;
    answer.assert_problem(413, "upload_too_large");
    // A body that ends with an error.
    let broken = stream::iter([
        Ok(Bytes::from(fake_png(4000, 1))),
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
    ]);
    let answer = app.send(Request::post("/v1/images"), Body::from_stream(broken)).await;
    answer.assert_problem(400, "broken_body");
    app.eventually_nothing_is_staged().await;
    assert!(app.originals().is_empty());
}

#[tokio::test]
async fn upload_of_exactly_the_limit_is_accepted() {
    let app = TestApp::configured(&[LIMIT]).await;
    app.upload(fake_png(10_000, 1)).await;
    let body = multipart(&[("name=\"file\"", &fake_png(10_000, 1)), ("name=\"title\"", b"x")]);
    assert_eq!(app.send(multipart_request(), body).await.status.as_u16(), 202);
}

#[tokio::test]
async fn invalid_multipart_bodies_are_rejected() {
    let app = TestApp::configured(&[LIMIT]).await;
    let png = fake_png(500, 1);
    let cut = multipart(&[("name=\"file\"", &png)]);
    let cut = cut[..cut.len() - 10].to_vec();
    let long = vec![b'x'; 9000];
    let file: (&str, &[u8]) = ("name=\"file\"", &png);
    let title: (&str, &[u8]) = ("name=\"title\"", b"x");
    let cases = [
        (multipart(&[]), 400, "invalid_multipart"),
        (multipart(&[title]), 400, "invalid_multipart"),
        (multipart(&[file, file]), 400, "invalid_multipart"),
        (multipart(&[file, title, title]), 400, "invalid_multipart"),
        (multipart(&[file, ("name=\"other\"", b"x")]), 400, "invalid_multipart"),
        (multipart(&[file, ("x=\"y\"", b"x")]), 400, "invalid_multipart"),
        (multipart(&[title, ("name=\"file\"", b"")]), 400, "empty_body"),
        (
            multipart(&[("name=\"file\"", b"this is only some text, not an image")]),
            415,
            "unsupported_media_type",
        ),
        (multipart(&[("name=\"file\"", &fake_png(10_001, 1))]), 413, "upload_too_large"),
        (multipart(&[("name=\"file\"", &fake_png(100_000, 1))]), 413, "upload_too_large"),
        (multipart(&[file, ("name=\"title\"", &long)]), 400, "invalid_field"),
        (multipart(&[file, ("name=\"title\"", b"\xff\xfe")]), 400, "invalid_field"),
        (cut, 400, "invalid_multipart"),
        (b"not multipart at all".to_vec(), 400, "invalid_multipart"),
        (Vec::new(), 400, "invalid_multipart"),
    ];
    for (n, (body, status, code)) in cases.into_iter().enumerate() {
        let answer = app.send(multipart_request(), body).await;
        assert_eq!(answer.status.as_u16(), status, "case {n}: {}", answer.text());
        answer.assert_problem(status, code);
    }
    let request = multipart_request().uri("/v1/images?title=x");
    let answer = app.send(request, multipart(&[file])).await;
    answer.assert_problem(400, "invalid_query");
    app.eventually_nothing_is_staged().await;
    assert!(app.originals().is_empty());
}

#[tokio::test]
async fn multipart_parser_buffers_a_bounded_number_of_bytes() {
    let app = TestApp::new().await;
    let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
    // More than the parser may buffer, less than the limit of an upload.
    let endless = stream::iter((0..500).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
    let answer = app.send(multipart_request(), Body::from_stream(endless)).await;
    answer.assert_problem(400, "invalid_multipart");
}

#[tokio::test]
async fn uploads_beyond_the_limit_are_rejected_unread() {
    let app = TestApp::configured(&[("SAFELIGHT_MAX_UPLOADS_IN_FLIGHT", "1")]).await;
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let (reading, is_reading) = tokio::sync::oneshot::channel::<()>();
    let first = stream::once(async move {
        let _ = reading.send(());
        let _ = released.await;
        Ok::<_, std::io::Error>(Bytes::from(fake_png(500, 1)))
    });
    let api = app.api.clone();
    let slow = tokio::spawn(async move {
        let request = Request::post("/v1/images").body(Body::from_stream(first)).expect("request");
        api.answer(addressed(request)).await.expect("a response").status()
    });
    is_reading.await.expect("the first upload is being received");
    let answer = app.send(Request::post("/v1/images"), fake_png(500, 2)).await;
    answer.assert_problem(503, "too_many_uploads");
    release.send(()).expect("still waiting");
    assert_eq!(slow.await.expect("no panic").as_u16(), 202);
    app.upload(fake_png(500, 3)).await;
}
