//! What answers say to browsers, and to which pages.

use axum::{body::Body, http::Request};

use crate::app::{TestApp, TestResponse, image_id, picture, task_id};

/// Headers of every answer, and what they say of a document.
const OF_A_DOCUMENT: [(&str, &str); 5] = [
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

/// A picture that has been delivered once, so that it is at hand, and its path.
async fn delivered(app: &TestApp) -> String {
    let document = app.upload(picture(500, 1)).await;
    app.write(task_id(&document)).await;
    let path = format!("/images/{}", image_id(&document));
    assert_eq!(app.get(&path).await.status, 200);
    path
}

#[tokio::test]
async fn documents_errors_and_probes_are_inert_in_a_browser() {
    let app = TestApp::new().await;
    for path in ["/livez", "/readyz", "/metrics", "/v1/images", "/v1/none", "/images/x", "/"] {
        assert_headers(&app.get(path).await, &OF_A_DOCUMENT, path);
    }
    let refused = app.send(Request::delete("/v1/images"), Body::empty()).await;
    assert_headers(&refused, &OF_A_DOCUMENT, "a method that there is not");
    let accepted = app.send(Request::post("/v1/images"), picture(500, 1)).await;
    assert_headers(&accepted, &OF_A_DOCUMENT, "an upload");
}

/// A cache puts the headers of a 304 in the place of those that it has: they must be the picture's too.
#[tokio::test]
async fn images_can_be_shown_anywhere_and_execute_nothing() {
    let app = TestApp::new().await;
    let path = delivered(&app).await;
    let tag = app.get(&path).await.header("etag").to_owned();
    let of_a_picture = [
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
        assert_headers(&answer, &of_a_picture, &format!("a picture with {status}"));
    }
}

#[tokio::test]
async fn hsts_is_sent_only_where_there_is_tls() {
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
async fn without_origins_no_page_may_read() {
    let app = TestApp::new().await;
    let path = delivered(&app).await;
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
    let path = delivered(&app).await;
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
    // At hand, through the router, and an error: a script must be able to read all of them.
    for path in [path.as_str(), "/v1/images", "/v1/none"] {
        let request = Request::get(path).header("origin", origin);
        let answer = app.send(request, Body::empty()).await;
        assert_eq!(answer.header("access-control-allow-origin"), origin, "{path}");
        let vary = answer.headers.get_all("vary").iter().any(|value| value == "origin");
        assert!(vary, "a cache must not give one page's answer to another: {path}");
        let read = answer.header("access-control-expose-headers").to_owned();
        for name in ["location", "retry-after", "etag", "ratelimit", "ratelimit-policy"] {
            assert!(read.split(',').any(|found| found == name), "{name}: {read}");
        }
    }
    for stranger in ["https://example.org", "http://app.example.org", "null"] {
        let answer = app.send(preflight(stranger), Body::empty()).await;
        assert_eq!(answer.header("access-control-allow-origin"), "", "{stranger}");
        let request = Request::get(&path).header("origin", stranger);
        let answer = app.send(request, Body::empty()).await;
        assert_eq!(answer.header("access-control-allow-origin"), "", "{stranger}");
    }
}

#[tokio::test]
async fn all_origins_are_the_same_to_a_cache() {
    let app = TestApp::configured(&[("SAFELIGHT_CORS_ORIGINS", "[\"*\"]")]).await;
    let path = delivered(&app).await;
    let request = Request::get(&path).header("origin", "https://app.example.org");
    let answer = app.send(request, Body::empty()).await;
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert_eq!(answer.header("vary"), "");
}
