//! Probes, metrics, the OpenAPI document and the docs page.

use serde_json::json;

use crate::app::TestApp;

#[tokio::test]
async fn readiness_reports_every_part() {
    let app = TestApp::new().await;
    assert_eq!(app.get("/livez").await.text(), "ok\n");
    let ready = app.get("/readyz").await;
    assert_eq!(ready.status.as_u16(), 200);
    let up = json!({"status": "ready", "parts": {"database": "up", "blobs": "up", "broker": "up"}});
    assert_eq!(ready.json(), up);
    // Without the broker uploads are still accepted.
    app.parts.queue.close().await;
    let degraded = app.get("/readyz").await;
    assert_eq!(degraded.status.as_u16(), 200);
    assert_eq!(degraded.json()["status"], "degraded");
    assert_eq!(degraded.json()["parts"]["broker"], "down");
}

#[tokio::test]
async fn metrics_are_plain_text() {
    let app = TestApp::new().await;
    let answer = app.get("/metrics").await;
    assert_eq!(answer.text(), "metrics\n");
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
}

#[tokio::test]
async fn docs_page_loads_nothing_from_other_hosts() {
    let app = TestApp::new().await;
    let document = app.get("/openapi.json").await.json();
    let expected = serde_json::to_value(safelight_api::openapi()).expect("JSON");
    assert_eq!(document, expected);
    assert_eq!(app.get("/docs").await.header("location"), "/docs/");
    let page = app.get("/docs/").await;
    assert_eq!(page.status.as_u16(), 200);
    let policy = page.header("content-security-policy");
    for rule in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.split("; ").any(|found| found == rule), "{rule}: {policy}");
    }
    assert!(!page.text().contains("<script>"), "a script in the page would not run");
    let script = app.get("/docs/swagger-initializer.js").await;
    for text in [page.text(), script.text()] {
        assert!(!text.contains("http://") && !text.contains("https://"), "{text}");
    }
    assert!(script.text().contains("/openapi.json"));
    for asset in page.text().split(['"', '\'']).filter(|text| text.starts_with("./")) {
        let answer = app.get(&format!("/docs/{}", &asset[2..])).await;
        assert_eq!(answer.status.as_u16(), 200, "{asset}");
    }
}

#[tokio::test]
async fn every_response_has_a_request_id() {
    let app = TestApp::new().await;
    let made = app.get("/livez").await.header("x-request-id").to_owned();
    assert_eq!(made.len(), 36);
    let request = |id| axum::http::Request::get("/livez").header("x-request-id", id);
    assert_eq!(app.send(request("abc-1"), "").await.header("x-request-id"), "abc-1");
    let replaced = app.send(request("a b\"c"), "").await;
    assert_eq!(replaced.header("x-request-id").len(), 36);
}
