//! What caches are told: how long a response is good, and whether a copy still is. The cases are those of
//! cache-tests.fyi that concern an origin.

use axum::{
    body::Body,
    http::{Method, Request},
};
use safelight_domain::ContentHash;
use serde_json::Value;

use crate::app::{TestApp, TestResponse, fake_png, image_id, task_id};

const IMMUTABLE: &str = "public, max-age=31536000, immutable";

/// An app with an image that has an original and renditions, the path of the original, and its document.
async fn with_image(bytes: usize) -> (TestApp, String, Value) {
    let app = TestApp::new().await;
    let upload = app.upload(fake_png(bytes, 1)).await;
    app.write(task_id(&upload)).await;
    app.render(task_id(&upload), b"a rendition").await;
    let document = app.get(&format!("/v1/images/{}", image_id(&upload))).await.json();
    (app, format!("/images/{}", image_id(&upload)), document)
}

async fn ask(app: &TestApp, method: &Method, path: &str, fields: &[(&str, &str)]) -> TestResponse {
    let request = Request::builder().method(method).uri(path);
    let request =
        fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    app.send(request, Body::empty()).await
}

#[tokio::test]
async fn every_response_says_how_it_may_be_cached() {
    let (app, image, document) = with_image(500).await;
    let small = document["renditions"]["small"]["url"].as_str().expect("a URL").to_owned();
    let unknown = "/images/0193c2a4-7d1e-7c3a-9d52-3f1f5a3c9b10";
    let long = format!("/livez?{}", "x".repeat(9000));
    let (not_cached, error) = ("private, no-store", "no-store");
    for (method, path, expected) in [
        (Method::GET, &*image, IMMUTABLE),
        (Method::HEAD, &image, IMMUTABLE),
        (Method::GET, &small, IMMUTABLE),
        (Method::GET, &format!("{image}/small"), "public, max-age=60"),
        (Method::GET, &format!("{image}/small?v=0123456789abcdef"), "public, no-cache"),
        (Method::GET, &format!("/v1{image}"), "private, no-cache"),
        (Method::GET, "/v1/images", not_cached),
        (Method::GET, "/v1/tasks", not_cached),
        (Method::GET, "/v1/keys", not_cached),
        (Method::GET, "/v1/audit", not_cached),
        (Method::GET, "/v1/limits", not_cached),
        (Method::GET, "/v1/queues", not_cached),
        (Method::GET, "/v1/workers", not_cached),
        (Method::POST, "/v1/tasks/retry?all=true", not_cached),
        (Method::GET, "/metrics", not_cached),
        (Method::GET, "/livez", not_cached),
        (Method::GET, "/readyz", error),
        (Method::GET, "/openapi.json", "public, no-cache"),
        (Method::GET, "/docs", not_cached),
        (Method::GET, "/docs/", "public, no-cache"),
        (Method::GET, "/docs/swagger-initializer.js", "public, no-cache"),
        (Method::GET, "/docs/swagger-ui-bundle.js", "public, max-age=3600"),
        (Method::GET, "/docs/none.js", error),
        (Method::GET, "/none", error),
        (Method::GET, unknown, error),
        (Method::GET, &format!("{image}/none"), error),
        (Method::PUT, "/v1/images", error),
        (Method::OPTIONS, "/v1/images", error),
        (Method::GET, "/v1/images?none=1", error),
        (Method::POST, "/v1/images", error),
        (Method::GET, &long, error),
    ] {
        let answer = ask(&app, &method, path, &[]).await;
        assert_eq!(answer.header("cache-control"), expected, "{method} {path}: {}", answer.status);
    }
    let large = "x".repeat(17 * 1024);
    for fields in [&[("x-large", &*large)][..], &[("host", "a b")]] {
        let answer = ask(&app, &Method::GET, &image, fields).await;
        assert!(answer.status.is_client_error());
        assert_eq!(answer.header("cache-control"), error, "{}", answer.status);
    }
}

/// The bytes of the URLs that documents contain never change: a rendition that is made again has another.
#[tokio::test]
async fn url_of_a_rendition_names_its_bytes() {
    let app = TestApp::configured(&[("SAFELIGHT_METADATA_CACHE_MS", "0")]).await;
    let upload = app.upload(fake_png(500, 1)).await;
    app.write(task_id(&upload)).await;
    app.render(task_id(&upload), b"a rendition").await;
    let image = image_id(&upload);
    let url = async || {
        let document = app.get(&format!("/v1/images/{image}")).await.json();
        document["renditions"]["small"]["url"].as_str().expect("a URL").to_owned()
    };
    let first = url().await;
    let answer = app.get(&first).await;
    assert_eq!((&*answer.body, answer.header("cache-control")), (&b"a rendition"[..], IMMUTABLE));

    // The same preset of the same picture, made by another encoder.
    let again = app.upload(fake_png(500, 1)).await;
    app.write(task_id(&again)).await;
    app.render(task_id(&again), b"another rendition").await;
    let second = url().await;
    assert_ne!(first, second);
    let answer = app.get(&second).await;
    assert_eq!(answer.header("cache-control"), IMMUTABLE);
    assert_eq!(answer.body, b"another rendition");
    // A copy under the old URL stays right. Who has none gets the bytes that are there, and must ask again.
    let old = app.get(&first).await;
    assert_eq!(
        (&*old.body, old.header("cache-control")),
        (&b"another rendition"[..], "public, no-cache")
    );
    assert_eq!(old.header("etag"), format!("\"{}\"", ContentHash::of(&old.body)));
    let plain = app.get(&format!("/images/{image}/small")).await;
    assert_eq!(plain.header("cache-control"), "public, max-age=60");
}

/// RFC 9110, section 13: which conditions hold, in which order, and what a 304 contains.
#[tokio::test]
async fn conditions_are_evaluated_in_order() {
    let (app, image, document) = with_image(500).await;
    let small = document["renditions"]["small"]["url"].as_str().expect("a URL").to_owned();
    for path in [image, small] {
        let whole = app.get(&path).await;
        let (tag, modified) = (whole.header("etag"), whole.header("last-modified"));
        let (weak, others) = (format!("W/{tag}"), format!("\"x\", {tag} ,W/\"y\""));
        let (past, future) = ("Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT");
        for (fields, status) in [
            (&[("if-none-match", tag)][..], 304),
            (&[("if-none-match", &weak)], 304),
            (&[("if-none-match", &others)], 304),
            (&[("if-none-match", "\"x\""), ("if-none-match", tag)], 304),
            (&[("if-none-match", "*")], 304),
            (&[("if-none-match", "\"x\"")], 200),
            (&[("if-none-match", tag.trim_matches('"'))], 200),
            (&[("if-none-match", "")], 200),
            (&[("if-modified-since", modified)], 304),
            (&[("if-modified-since", future)], 304),
            (&[("if-modified-since", past)], 200),
            (&[("if-modified-since", "yesterday")], 200),
            (&[("if-none-match", "\"x\""), ("if-modified-since", modified)], 200),
            (&[("if-none-match", tag), ("if-modified-since", past)], 304),
            (&[("if-match", tag)], 200),
            (&[("if-match", &weak)], 412),
            (&[("if-match", "\"x\"")], 412),
            (&[("if-match", "*")], 200),
            (&[("if-match", "\"x\""), ("if-none-match", tag)], 412),
            (&[("if-match", tag), ("if-none-match", tag)], 304),
            (&[("if-unmodified-since", modified)], 200),
            (&[("if-unmodified-since", past)], 412),
            (&[("if-unmodified-since", past), ("if-match", tag)], 200),
            (&[("range", "bytes=0-3"), ("if-none-match", tag)], 304),
            (&[("range", "bytes=900-"), ("if-none-match", tag)], 304),
        ] {
            for method in [Method::GET, Method::HEAD] {
                let answer = ask(&app, &method, &path, fields).await;
                assert_eq!(answer.status.as_u16(), status, "{method} {path} {fields:?}");
                if status == 304 {
                    assert!(answer.body.is_empty());
                    let names = ["etag", "last-modified", "cache-control", "vary", "repr-digest"];
                    for name in names {
                        assert_eq!(answer.header(name), whole.header(name), "{name} of a 304");
                    }
                    assert_eq!(answer.header("content-type"), "", "of no use, and may be wrong");
                }
            }
        }
    }
}

/// RFC 9110, section 14.
#[tokio::test]
async fn ranges_are_served_only_of_the_copy_that_the_client_has() {
    let (app, path, _) = with_image(500).await;
    let whole = app.get(&path).await;
    let (tag, modified) = (whole.header("etag"), whole.header("last-modified"));
    let weak = format!("W/{tag}");
    let range = ("range", "bytes=10-19");
    for (fields, status) in [
        (&[range][..], 206),
        (&[range, ("if-range", tag)], 206),
        (&[range, ("if-range", modified)], 206),
        (&[range, ("if-range", &weak)], 200),
        (&[range, ("if-range", "\"x\"")], 200),
        (&[range, ("if-range", "Thu, 01 Jan 1970 00:00:00 GMT")], 200),
        (&[range, ("if-range", "Fri, 01 Jan 2100 00:00:00 GMT")], 200),
        (&[("range", "bytes=500-")], 416),
        (&[("range", "bytes=500-"), ("if-range", "\"x\"")], 200),
        (&[("range", "bytes=-1")], 206),
        (&[("range", "items=0-1")], 200),
        (&[("range", "bytes=x")], 200),
        (&[("range", "bytes=2-1")], 200),
    ] {
        let answer = ask(&app, &Method::GET, &path, fields).await;
        assert_eq!(answer.status.as_u16(), status, "{fields:?}");
        if status == 206 {
            assert_eq!(answer.header("etag"), tag);
            assert_eq!(answer.header("repr-digest"), whole.header("repr-digest"), "of the whole");
            assert!(answer.header("content-range").ends_with("/500"));
        }
        // A range has no meaning for HEAD.
        let head = ask(&app, &Method::HEAD, &path, fields).await;
        assert_eq!(head.status.as_u16(), 200, "{fields:?}");
        assert_eq!(head.header("content-length"), "500");
    }
}

#[tokio::test]
async fn head_has_the_headers_of_get() {
    let (app, image, document) = with_image(500).await;
    let small = document["renditions"]["small"]["url"].as_str().expect("a URL");
    let metadata = format!("/v1{image}");
    let paths =
        [&*image, small, &metadata, "/v1/images", "/openapi.json", "/docs/", "/livez", "/none"];
    for path in paths {
        let get = ask(&app, &Method::GET, path, &[]).await;
        let head = ask(&app, &Method::HEAD, path, &[]).await;
        assert_eq!(head.status, get.status, "{path}");
        assert!(head.body.is_empty(), "{path}");
        let names = |answer: &TestResponse| {
            let mut names: Vec<_> = answer.headers.keys().map(ToString::to_string).collect();
            // An error's length may be left out (RFC 9110, section 9.3.2).
            names.retain(|name| name != "content-length");
            names.sort();
            names
        };
        assert_eq!(names(&head), names(&get), "{path}");
        for name in
            ["etag", "content-type", "cache-control", "last-modified", "content-disposition"]
        {
            assert_eq!(head.header(name), get.header(name), "{name} of {path}");
        }
    }
}

/// What a shared cache keeps must be the same for all clients, except as `Vary` says.
#[tokio::test]
async fn cacheable_responses_reflect_nothing_that_one_client_sent() {
    let (app, image, document) = with_image(500).await;
    let small = document["renditions"]["small"]["url"].as_str().expect("a URL").to_owned();
    for path in [&*image, &small, &format!("{image}/small"), "/openapi.json", "/docs/"] {
        let plain = ask(&app, &Method::GET, path, &[]).await;
        let sent = [
            ("x-request-id", "chosen"),
            ("origin", "https://evil.example"),
            ("traceparent", "00-11111111111111111111111111111111-2222222222222222-01"),
            ("prefer", "wait=1"),
            ("x-forwarded-host", "chosen"),
            ("forwarded", "host=chosen"),
            ("via", "1.1 chosen"),
        ];
        let other = ask(&app, &Method::GET, path, &sent).await;
        assert_eq!(other.header("x-request-id"), "", "{path}");
        for (name, value) in &other.headers {
            if name != "cache-status" {
                assert_eq!(plain.headers.get(name), Some(value), "{name} of {path}");
            }
        }
    }
    let id = ask(&app, &Method::GET, "/v1/images", &[("x-request-id", "chosen")]).await;
    assert_eq!(id.header("x-request-id"), "chosen", "of what no cache keeps");
    for control in ["a\tb", "a b", "a,b", "\u{e9}"] {
        let answer = ask(&app, &Method::GET, "/v1/images", &[("x-request-id", control)]).await;
        assert_eq!(answer.header("x-request-id").len(), 36, "{control}: one of ours");
    }
}

#[tokio::test]
async fn description_is_compressed_and_revalidated() {
    let app = TestApp::new().await;
    for path in ["/openapi.json", "/docs/", "/docs/swagger-ui-bundle.js"] {
        let plain = app.get(path).await;
        let packed = ask(&app, &Method::GET, path, &[("accept-encoding", "br, gzip")]).await;
        assert_eq!(packed.header("content-type"), plain.header("content-type"));
        if plain.body.len() > 10_000 {
            assert_eq!(packed.header("content-encoding"), "gzip", "{path}");
            assert!(packed.body.len() * 2 < plain.body.len(), "{path}");
        }
        for (answer, accepted) in [(&plain, "identity"), (&packed, "gzip")] {
            assert_eq!(answer.header("vary"), "accept-encoding");
            let fields = [("if-none-match", answer.header("etag")), ("accept-encoding", accepted)];
            let known = ask(&app, &Method::GET, path, &fields).await;
            assert_eq!(known.status.as_u16(), 304, "{path} {accepted}");
            let policy = "content-security-policy";
            assert_eq!(known.header(policy), answer.header(policy));
        }
    }
}
