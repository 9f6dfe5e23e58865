//! Heads that no route may see, over real connections: hosts, targets, transfer codings.

use crate::{
    app::{fake_png, image_id, task_id},
    server::ConnectedApp,
};

/// A GET of `path` with these lines.
fn get(path: &str, lines: &[&str]) -> String {
    let lines: String = lines.iter().flat_map(|line| [line, "\r\n"]).collect();
    format!("GET {path} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n")
}

fn assert_rejected(answer: &str, status: u16, code: &str, what: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
    assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{what}: {answer}");
    assert!(answer.contains("content-type: application/problem+json"), "{what}: {answer}");
    assert!(answer.contains("cache-control: no-store"), "{what}: {answer}");
    assert!(answer.contains("x-content-type-options: nosniff"), "{what}: {answer}");
}

#[tokio::test]
async fn requests_without_exactly_one_valid_host_are_rejected() {
    let server = ConnectedApp::new(&[]).await;
    let document = server.app.upload(fake_png(500, 1)).await;
    server.app.write(task_id(&document)).await;
    let image = format!("/images/{}", image_id(&document));
    // The image is in memory: the fast path has the same rules.
    assert!(server.exchange(&get(&image, &["Host: localhost"])).await.contains(" 200 OK"));
    for path in [&*image, "/livez", "/v1/limits", "/v1/images", "/docs/", "/none"] {
        for lines in [
            &[][..],
            &["Host:"],
            &["Host: localhost", "Host: localhost"],
            &["Host: localhost", "Host: evil.example"],
            &["Host: a b"],
            &["Host: a/b"],
            &["Host: a/b@c"],
            &["Host: user@localhost"],
            &["Host: localhost, evil.example"],
            &["Host: localhost:80:80"],
            &["Host: localhost:port"],
            &["Host: localhost:65536"],
            &["Host: [::1"],
            &["Host: http://localhost"],
            &["Host: caf\u{e9}"],
        ] {
            let what = format!("{path} {lines:?}");
            assert_rejected(
                &server.exchange(&get(path, lines)).await,
                400,
                "invalid_request",
                &what,
            );
        }
    }
    for host in ["localhost:8080", "LOCALHOST", "img.example.org", "[::1]:1", "127.0.0.1"] {
        let answer = server.exchange(&get("/livez", &[&format!("Host: {host}")])).await;
        assert!(answer.contains(" 200 OK"), "{host}: {answer}");
    }
    // HTTP/1.0 has no `Host`: probes of load balancers send none.
    let answer = server.exchange("GET /livez HTTP/1.0\r\n\r\n").await;
    assert!(answer.contains(" 200 OK"), "{answer}");
}

#[tokio::test]
async fn absolute_targets_have_a_scheme_and_a_host_that_we_serve() {
    let server = ConnectedApp::new(&[]).await;
    for target in ["ftp://localhost/livez", "file://localhost/livez", "http://u:p@localhost/livez"]
    {
        let answer = server.exchange(&get(target, &["Host: localhost"])).await;
        assert_rejected(&answer, 400, "invalid_request", target);
    }
    for target in ["http://localhost/livez", "HTTP://localhost/livez", "https://localhost/livez"] {
        let answer = server.exchange(&get(target, &["Host: localhost"])).await;
        assert!(answer.contains(" 200 OK"), "{target}: {answer}");
    }
}

/// Who decodes another coding than `chunked` finds another end of the request.
#[tokio::test]
async fn transfer_codings_other_than_chunked_are_not_implemented() {
    let server = ConnectedApp::new(&[]).await;
    let post = |coding: &str, body: &str| {
        format!(
            "POST /v1/images HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: {coding}\r\n\r\n{body}"
        )
    };
    let hidden = "GET /v1/hidden HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    for coding in
        ["gzip, chunked", "deflate,chunked", "x, chunked", "gzip\r\nTransfer-Encoding: chunked"]
    {
        let answer = server.exchange(&post(coding, &format!("0\r\n\r\n{hidden}"))).await;
        assert_rejected(&answer, 501, "unsupported_transfer_coding", coding);
        assert!(!answer.contains("/v1/hidden"), "{coding}: {answer}");
        assert!(answer.contains("connection: close"), "{coding}: {answer}");
    }
    // Without `chunked` at the end the length is unknown (RFC 9112, section 6.3).
    for coding in ["gzip", "identity", "chunked, gzip"] {
        let answer = server.exchange(&post(coding, hidden)).await;
        let status: u16 = answer.get(9..12).and_then(|text| text.parse().ok()).unwrap_or(0);
        assert!(matches!(status, 400 | 501), "{coding}: {answer}");
        assert!(!answer.contains("/v1/hidden"), "{coding}: {answer}");
    }
}

#[tokio::test]
async fn server_as_a_whole_has_options_and_is_no_proxy() {
    let server = ConnectedApp::new(&[]).await;
    let rest = "HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let answer = server.exchange(&format!("OPTIONS * {rest}")).await;
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    let answer = server.exchange(&format!("CONNECT localhost:22 {rest}")).await;
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("\r\nallow: \r\n"), "{answer}");
    assert!(answer.contains("\"code\":\"method_not_allowed\""), "{answer}");
}
