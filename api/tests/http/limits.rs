//! Request heads that are too large, and requests that are not valid HTTP.

use axum::{body::Body, http::Request};
use tokio::io::AsyncWriteExt;

use crate::{
    app::{TestApp, fake_png, image_id, task_id},
    server::{ConnectedApp, read_answer},
};

#[tokio::test]
async fn too_large_heads_are_rejected_also_on_the_fast_path() {
    let app = TestApp::new().await;
    let document = app.upload(fake_png(500, 1)).await;
    app.write(task_id(&document)).await;
    let image = format!("/images/{}", image_id(&document));
    assert_eq!(app.get(&image).await.status, 200);
    let (too_large, large) = ("x".repeat(16 * 1024), "x".repeat(15 * 1024));
    for path in [image.as_str(), "/livez", "/v1/tasks", "/none"] {
        let answer = app.get(&format!("{path}?q={}", "x".repeat(8 * 1024))).await;
        answer.assert_problem(414, "uri_too_long");
        let answer =
            app.send(Request::get(path).header("x-large", &too_large), Body::empty()).await;
        answer.assert_problem(431, "head_too_large");
        let many = (0..65).fold(Request::get(path), |r, n| r.header(format!("x-{n}"), "1"));
        app.send(many, Body::empty()).await.assert_problem(431, "head_too_large");
        let fits = Request::get(path).header("x-large", &large);
        assert_ne!(app.send(fits, Body::empty()).await.status, 431);
    }
}

#[tokio::test]
async fn requests_rejected_by_the_http_library_answer_4xx() {
    let server = ConnectedApp::new(&[]).await;
    let get = "GET /livez HTTP/1.1\r\nHost: localhost\r\n";
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(30_000));
    let long_field = format!("{get}X: {}\r\n\r\n", "x".repeat(30_000));
    // Its end never comes: what is held of it is bounded.
    let endless_field = format!("{get}X: {}", "x".repeat(30_000));
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
        (endless_field.into_bytes(), 431),
        (many.into_bytes(), 431),
    ];
    for (bytes, status) in cases {
        let mut stream = server.connect().await;
        // The server may respond and close before it has read all bytes.
        let _ = stream.write_all(&bytes).await;
        let answer = read_answer(&mut stream).await;
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{start}: {answer}");
        for part in ["application/problem+json", "cache-control: no-store", "\"retryable\":false"] {
            assert!(answer.contains(part), "{start}: {answer}");
        }
    }
    assert!(server.exchange(&format!("{get}Connection: close\r\n\r\n")).await.contains("200 OK"));
}

/// If a proxy and the server disagree where a request ends, another request can hide in its body.
#[tokio::test]
async fn ambiguous_request_framing_is_rejected() {
    let server = ConnectedApp::new(&[]).await;
    let hidden = "GET /v1/hidden HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let smuggled = format!(
        "POST /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\
         Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}",
        5 + hidden.len()
    );
    let answer = server.exchange(&smuggled).await;
    assert!(!answer.contains("/v1/hidden"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}

#[tokio::test]
async fn unusual_targets_and_methods_answer_with_a_problem() {
    let server = ConnectedApp::new(&[]).await;
    for (line, status) in [
        ("CONNECT example.org:443", 405),
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
        let answer = server.exchange(&request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {answer}");
        assert!(answer.contains("application/problem+json"), "{line}: {answer}");
    }
}
