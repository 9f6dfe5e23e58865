//! Requests that are too large before their body, and what is no HTTP.

use axum::{body::Body, http::Request};
use tokio::io::AsyncWriteExt;

use crate::{
    app::{TestApp, image_id, picture, task_id},
    server::{Served, read_answer},
};

#[tokio::test]
async fn too_large_heads_are_rejected_also_on_the_fast_path() {
    let app = TestApp::new().await;
    let document = app.upload(picture(500, 1)).await;
    app.write(task_id(&document)).await;
    let picture = format!("/images/{}", image_id(&document));
    assert_eq!(app.get(&picture).await.status, 200);
    let (large, just_right) = ("x".repeat(16 * 1024), "x".repeat(15 * 1024));
    for path in [picture.as_str(), "/livez", "/v1/tasks", "/none"] {
        let answer = app.get(&format!("{path}?q={}", "x".repeat(8 * 1024))).await;
        answer.assert_problem(414, "uri_too_long");
        let answer = app.send(Request::get(path).header("x-large", &large), Body::empty()).await;
        answer.assert_problem(431, "head_too_large");
        let many = (0..65).fold(Request::get(path), |r, n| r.header(format!("x-{n}"), "1"));
        app.send(many, Body::empty()).await.assert_problem(431, "head_too_large");
        let fits = Request::get(path).header("x-large", &just_right);
        assert_ne!(app.send(fits, Body::empty()).await.status, 431);
    }
}

#[tokio::test]
async fn requests_rejected_by_the_http_library_answer_4xx() {
    let served = Served::new(&[]).await;
    let get = "GET /livez HTTP/1.1\r\nHost: localhost\r\n";
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(70_000));
    let long_field = format!("{get}X: {}\r\n\r\n", "x".repeat(70_000));
    let many = format!("{get}{}\r\n", "X-Many: 1\r\n".repeat(200));
    let cases = [
        (b"no http at all\r\n\r\n".to_vec(), 400),
        (b"GET /livez HTTP/9.9\r\n\r\n".to_vec(), 400),
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), 400),
        (b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), 400),
        (format!("{get}Bad Name: 1\r\n\r\n").into_bytes(), 400),
        (format!("{get}X: a\0b\r\n\r\n").into_bytes(), 400),
        (format!("{get}Content-Length: x\r\n\r\n").into_bytes(), 400),
        (format!("{get}Content-Length: 1\r\nContent-Length: 2\r\n\r\n").into_bytes(), 400),
        (long_path.into_bytes(), 414),
        (long_field.into_bytes(), 431),
        (many.into_bytes(), 431),
    ];
    for (bytes, status) in cases {
        let mut stream = served.connect().await;
        // It may answer and close before it has read all of it.
        let _ = stream.write_all(&bytes).await;
        let answer = read_answer(&mut stream).await;
        let begun = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{begun}: {answer}");
    }
    assert!(served.exchange(&format!("{get}Connection: close\r\n\r\n")).await.contains("200 OK"));
}

/// Two ideas of where a request ends would let one hide in another's body, behind a proxy.
#[tokio::test]
async fn ambiguous_request_framing_is_rejected() {
    let served = Served::new(&[]).await;
    let hidden = "GET /v1/hidden HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let smuggled = format!(
        "POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
        5 + hidden.len()
    );
    let answer = served.exchange(&smuggled).await;
    assert!(!answer.contains("/v1/hidden"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

#[tokio::test]
async fn odd_targets_and_methods_are_problems() {
    let served = Served::new(&[]).await;
    for (line, status) in [
        ("OPTIONS *", 404),
        ("CONNECT example.org:443", 404),
        ("GET http://elsewhere.example/none", 404),
        ("TRACE /livez", 405),
        ("GET //etc/passwd", 404),
        ("GET /images/../../etc/passwd", 404),
        ("GET /images/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
        ("GET /images/%00/%ff", 404),
        ("GET /docs/../Cargo.toml", 404),
        ("GET /v1/images?cursor=%ff", 400),
    ] {
        let request = format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let answer = served.exchange(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
        assert!(answer.contains("application/problem+json"), "{line}: {answer}");
    }
}
