//! Security headers and CORS.

use axum::{body::Body, http::Request};

use crate::app::{TestApp, TestResponse, fake_png, image_id, task_id};

/// The security headers of a response that is not an image.
const DOCUMENT_HEADERS: [(&str, &str); 5] = [
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'; sandbox"),
    ("strict-transport-security", ""),
];

fn assert_headers(answer: &TestResponse, expected: &[(&str, &str)], what: &str) {
    for (name, value) in expected {
        assert_eq!(answer.header(name), *value, "{name} of {what}");
    }
}

/// The path of an image that was served once, so that it is cached.
async fn cached_image(app: &TestApp) -> String {
    let document = app.upload(fake_png(500, 1)).await;
    app.write(task_id(&document)).await;
    let path = format!("/images/{}", image_id(&document));
    assert_eq!(app.get(&path).await.status, 200);
    path
}

#[tokio::test]
async fn documents_errors_and_probes_are_inert_in_a_browser() {
    let app = TestApp::new().await;
    for path in ["/livez", "/readyz", "/metrics", "/v1/images", "/v1/none", "/images/x", "/"] {
        assert_headers(&app.get(path).await, &DOCUMENT_HEADERS, path);
    }
    let rejected = app.send(Request::delete("/v1/images"), Body::empty()).await;
    assert_headers(&rejected, &DOCUMENT_HEADERS, "a method that does not exist");
    let accepted = app.send(Request::post("/v1/images"), fake_png(500, 1)).await;
    assert_headers(&accepted, &DOCUMENT_HEADERS, "an upload");
}

/// A cache replaces its stored headers by those of a 304, so a 304 must have the headers of the image too.
#[tokio::test]
async fn images_can_be_shown_anywhere_and_execute_nothing() {
    let app = TestApp::new().await;
    let path = cached_image(&app).await;
    let tag = app.get(&path).await.header("etag").to_owned();
    let image_headers = [
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "cross-origin"),
        ("content-security-policy", "default-src 'none'; sandbox"),
    ];
    let get = || Request::get(&path);
    for (request, status) in [
        (get(), 200),
        (Request::head(&path), 200),
        (get().header("range", "bytes=0-9"), 206),
        (get().header("if-none-match", &tag), 304),
    ] {
        let answer = app.send(request, Body::empty()).await;
        assert_eq!(answer.status, status);
        assert_headers(&answer, &image_headers, &format!("an image with {status}"));
    }
}

#[tokio::test]
async fn hsts_is_sent_only_with_tls() {
    let app = TestApp::configured(&[("SAFELIGHT_BEHIND_TLS", "true")]).await;
    let document = app.key("ada", "upload").await.upload(&app, "").await;
    app.write(task_id(&document)).await;
    let path = format!("/images/{}", image_id(&document));
    for path in [path.as_str(), "/livez", "/none", "/docs/"] {
        let answer = app.get(path).await;
        assert_eq!(answer.header("strict-transport-security"), "max-age=31536000", "{path}");
    }
}

fn preflight(origin: &str) -> axum::http::request::Builder {
    Request::options("/v1/images")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "idempotency-key,content-digest,prefer")
}

#[tokio::test]
async fn without_cors_origins_no_page_may_read() {
    let app = TestApp::new().await;
    let path = cached_image(&app).await;
    let answer = app.send(preflight("https://app.example.org"), Body::empty()).await;
    answer.assert_problem(405, "method_not_allowed");
    assert_eq!(answer.header("access-control-allow-origin"), "");
    let request = Request::get(&path).header("origin", "https://app.example.org");
    let answer = app.send(request, Body::empty()).await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn pages_of_the_configured_origins_may_upload_and_read() {
    let app =
        TestApp::configured(&[("SAFELIGHT_CORS_ORIGINS", "[\"https://App.example.org\"]")]).await;
    let path = cached_image(&app).await;
    let origin = "https://app.example.org";
    let answer = app.send(preflight(origin), Body::empty()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("access-control-allow-origin"), origin);
    assert_eq!(answer.header("access-control-allow-credentials"), "");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    let sent = answer.header("access-control-allow-headers").to_owned();
    let wanted =
        ["authorization", "content-type", "idempotency-key", "content-digest", "prefer", "range"];
    for name in wanted {
        assert!(sent.split(',').any(|found| found == name), "{name}: {sent}");
    }
    // From the fast path, through the router, and an error: a script must be able to read all of them.
    for path in [path.as_str(), "/v1/images", "/v1/none"] {
        let request = Request::get(path).header("origin", origin);
        let answer = app.send(request, Body::empty()).await;
        let is_image = path.starts_with("/images/");
        let allowed = if is_image { "*" } else { origin };
        assert_eq!(answer.header("access-control-allow-origin"), allowed, "{path}");
        let vary = answer.headers.get_all("vary").iter().any(|value| value == "origin");
        assert_eq!(
            vary, !is_image,
            "a cache must not serve one page's response to another: {path}"
        );
        let read = answer.header("access-control-expose-headers").to_owned();
        for name in ["location", "retry-after", "etag", "ratelimit", "ratelimit-policy", "link"] {
            assert!(read.split(',').any(|found| found == name), "{name}: {read}");
        }
    }
    for stranger in ["https://example.org", "http://app.example.org", "null"] {
        let answer = app.send(preflight(stranger), Body::empty()).await;
        assert_eq!(answer.header("access-control-allow-origin"), "", "{stranger}");
        let request = Request::get("/v1/images").header("origin", stranger);
        let answer = app.send(request, Body::empty()).await;
        assert_eq!(answer.header("access-control-allow-origin"), "", "{stranger}");
        // A shared cache keeps one copy of an image, whatever origins are invented.
        for conditional in [None, Some("*")] {
            let request = Request::get(&path).header("origin", stranger);
            let request = conditional
                .map_or(Request::get(&path).header("origin", stranger), |tag| {
                    request.header("if-none-match", tag)
                });
            let answer = app.send(request, Body::empty()).await;
            assert_eq!(answer.header("access-control-allow-origin"), "*", "{stranger}");
            assert_eq!(answer.header("vary"), "", "{stranger}");
        }
    }
}

#[tokio::test]
async fn wildcard_origin_needs_no_vary_header() {
    let app = TestApp::configured(&[("SAFELIGHT_CORS_ORIGINS", "[\"*\"]")]).await;
    let path = cached_image(&app).await;
    let request = Request::get(&path).header("origin", "https://app.example.org");
    let answer = app.send(request, Body::empty()).await;
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert_eq!(answer.header("vary"), "");
}
