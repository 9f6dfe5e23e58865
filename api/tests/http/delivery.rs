//! Reading originals and renditions.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    http::{Method, Request},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use safelight_api::ApiOptions;
use safelight_blobs::BlobKey;
use safelight_domain::{ContentHash, ErrorCode, Failure, ImageFormat, ImageId, JobKind, TaskKind};
use safelight_store::{Effect, Outcome, PageRequest, TaskFilter, testing::FaultyStore};

use crate::{
    app::{TestApp, addressed, eventually, fake_png, image_id, task_id},
    fault_switch::{Fault, FaultSwitch},
};

#[tokio::test]
async fn originals_and_renditions_are_served_with_their_headers() {
    let app = TestApp::new().await;
    let bytes = fake_png(300_000, 1);
    let request = Request::post("/v1/images")
        .header("content-disposition", "attachment; filename*=UTF-8''caf%C3%A9.png");
    let document = app.send(request, bytes.clone()).await.json();
    let (task, image) = (task_id(&document), image_id(&document));
    app.write(task).await;
    app.render(task, b"a small image").await;
    let original = app.get(&format!("/images/{image}")).await;
    assert_eq!(original.body, bytes);
    assert_eq!(original.header("content-type"), "image/png");
    assert_eq!(
        original.header("content-disposition"),
        "inline; filename=\"caf_.png\"; filename*=UTF-8''caf%C3%A9.png"
    );
    let small = app.get(&format!("/images/{image}/small")).await;
    assert_eq!(small.body, b"a small image");
    assert_eq!(small.header("content-type"), "image/jpeg");
    let immutable = "public, max-age=31536000, immutable";
    for (path, answer, cache_control) in [
        (format!("/images/{image}"), original, immutable),
        (format!("/images/{image}/small"), small, "public, max-age=60"),
    ] {
        assert_eq!(answer.header("etag"), format!("\"{}\"", ContentHash::of(&answer.body)));
        assert_eq!(answer.header("content-length"), answer.body.len().to_string());
        assert_eq!(answer.header("cache-control"), cache_control);
        let digest = STANDARD.encode(ContentHash::of(&answer.body).as_bytes());
        assert_eq!(answer.header("repr-digest"), format!("sha-256=:{digest}:"));
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        assert_eq!(answer.header("content-security-policy"), "default-src 'none'; sandbox");
        assert_eq!(answer.header("cross-origin-resource-policy"), "cross-origin");
        let tags = format!("\"other\", W/{}", answer.header("etag"));
        for known in ["*", &tags] {
            let request = Request::get(&path).header("if-none-match", known);
            let unchanged = app.send(request, "").await;
            assert_eq!(unchanged.status.as_u16(), 304);
            assert_eq!(unchanged.header("etag"), answer.header("etag"));
            assert!(unchanged.body.is_empty());
        }
        let request = Request::builder().method(Method::HEAD).uri(&path);
        let head = app.send(request, "").await;
        assert_eq!(head.status.as_u16(), 200);
        assert_eq!(head.header("content-length"), answer.header("content-length"));
        assert!(head.body.is_empty());
    }
}

#[tokio::test]
async fn missing_image_reports_whether_it_is_pending_or_failed() {
    let app = TestApp::configured(&[("SAFELIGHT_DELIVERY_WAIT_MS", "0")]).await;
    let document = app.upload(fake_png(500, 1)).await;
    let (task, image) = (task_id(&document), image_id(&document));
    let (original, small) = (format!("/images/{image}"), format!("/images/{image}/small"));
    for path in [&original, &small] {
        let answer = app.get(path).await;
        assert_eq!(answer.header("cache-control"), "no-store");
        answer.assert_problem(503, "image_not_ready");
    }
    app.write(task).await;
    assert_eq!(app.get(&original).await.status.as_u16(), 200);
    let failure = Failure::new(ErrorCode::CorruptImage, "the data ends early");
    app.fail(task, JobKind::Thumbnail, failure).await;
    let problem = app.get(&small).await.assert_problem(404, "image_failed");
    assert_eq!(problem["reason"], "corrupt_image");
    let unknown = format!("/images/{}", ImageId::new());
    app.get(&unknown).await.assert_problem(404, "image_not_found");
    app.get(&format!("{unknown}/small")).await.assert_problem(404, "image_not_found");
    app.get(&format!("{original}/huge")).await.assert_problem(404, "preset_not_found");
}

#[tokio::test]
async fn request_waits_until_the_rendition_is_made() {
    let app = TestApp::new().await;
    let document = app.upload(fake_png(500, 1)).await;
    let (task, image) = (task_id(&document), image_id(&document));
    let paths = [format!("/images/{image}?wait=60"), format!("/images/{image}/small?x=3&wait=60")];
    let held: Vec<_> = paths
        .iter()
        .cycle()
        .take(40)
        .map(|path| {
            let (api, path) = (app.api.clone(), path.clone());
            let request = Request::get(path).body(Body::empty()).expect("a request");
            tokio::spawn(async move { api.answer(addressed(request)).await.expect("a response") })
        })
        .collect();
    app.write(task).await;
    app.render(task, b"a small image").await;
    for answer in held {
        let answer = answer.await.expect("no panic");
        assert_eq!(answer.status(), 200);
        assert!(answer.headers()["cache-control"].to_str().is_ok_and(|v| v.starts_with("public")));
    }
    for wrong in ["61", "-1", "x", ""] {
        let other = image_id(&app.upload(fake_png(500, 2)).await);
        let answer = app.get(&format!("/images/{other}?wait={wrong}")).await;
        answer.assert_problem(400, "invalid_query");
    }
}

#[tokio::test]
async fn missing_rendition_is_queued_once() {
    let app = TestApp::new().await;
    let document = app.upload(fake_png(500, 1)).await;
    let (task, image) = (task_id(&document), image_id(&document));
    app.write(task).await;
    // As after adding a preset: the upload's own job has ended without it.
    let (lease, _) = app.claim(task, JobKind::Thumbnail).await;
    app.settle(lease, Outcome::Succeeded(Vec::new())).await;
    let path = format!("/images/{image}/small?wait=60");
    let held: Vec<_> = (0..50)
        .map(|_| {
            let (api, path) = (app.api.clone(), path.clone());
            let request = Request::get(path).body(Body::empty()).expect("a request");
            tokio::spawn(async move {
                api.answer(addressed(request)).await.expect("a response").status()
            })
        })
        .collect();
    let mut asked = None;
    eventually(async || {
        let filter = TaskFilter { kind: Some(TaskKind::Rendition), ..TaskFilter::default() };
        let page = PageRequest { before: None, limit: 500 };
        let tasks = app.parts.store.list_tasks(&filter, &page).await.expect("tasks").tasks;
        assert!(tasks.len() <= 1, "queued more than once");
        asked = tasks.first().map(|task| task.id);
        asked.is_some()
    })
    .await;
    let asked = asked.expect("a task");
    assert_eq!(app.get(&format!("/v1/tasks/{asked}")).await.json()["kind"], "rendition");
    app.render(asked, b"made on demand").await;
    for status in held {
        assert_eq!(status.await.expect("no panic"), 200);
    }
    assert_eq!(app.get(&path).await.body, b"made on demand");
}

#[tokio::test]
async fn rendition_that_fails_on_demand_is_not_retried_forever() {
    let app = TestApp::configured(&[("SAFELIGHT_DELIVERY_WAIT_MS", "0")]).await;
    let document = app.upload(fake_png(500, 1)).await;
    let (task, image) = (task_id(&document), image_id(&document));
    app.write(task).await;
    let (lease, _) = app.claim(task, JobKind::Thumbnail).await;
    app.settle(lease, Outcome::Succeeded(Vec::new())).await;
    let path = format!("/images/{image}/small");
    app.get(&path).await.assert_problem(503, "image_not_ready");
    let list = app.get("/v1/tasks").await.json();
    let asked = task_id(&list["tasks"][0]);
    let failure = Failure::new(ErrorCode::CorruptImage, "the data ends early");
    app.fail(asked, JobKind::Thumbnail, failure).await;
    for _ in 0..3 {
        let problem = app.get(&path).await.assert_problem(404, "image_failed");
        assert_eq!(problem["reason"], "corrupt_image");
    }
    let list = app.get("/v1/tasks").await.json();
    assert_eq!(list["tasks"].as_array().map(Vec::len), Some(2));
    // Cancelling it does not affect the upload.
    app.send(Request::post(format!("/v1/tasks/{asked}/cancel")), "").await;
    assert_eq!(app.get(&format!("/images/{image}")).await.status.as_u16(), 200);
}

#[tokio::test]
async fn cancelled_image_is_gone_immediately() {
    let app = TestApp::new().await;
    let document = app.upload(fake_png(500, 1)).await;
    let (task, image) = (task_id(&document), image_id(&document));
    app.write(task).await;
    let path = format!("/images/{image}");
    assert_eq!(app.get(&path).await.status.as_u16(), 200);
    app.send(Request::post(format!("/v1/tasks/{task}/cancel")), "").await;
    let answer = app.get(&path).await;
    assert_eq!(answer.header("cache-control"), "no-store");
    answer.assert_problem(410, "image_cancelled");
    app.get(&format!("{path}/small")).await.assert_problem(410, "image_cancelled");
}

#[tokio::test]
async fn byte_ranges_of_small_and_large_objects_are_served() {
    // The second object is too large to be held in memory.
    for (bytes, memory) in [(5_000, "268435456"), (3_000_000, "1000000")] {
        let app = TestApp::configured(&[("SAFELIGHT_MEMORY_CACHE_BYTES", memory)]).await;
        let whole: Vec<u8> = fake_png(bytes, 1)
            .into_iter()
            .enumerate()
            .map(
                |(at, byte)| if at < 16 { byte } else { at.to_le_bytes()[0] ^ at.to_le_bytes()[1] },
            )
            .collect();
        let document = app.upload(whole.clone()).await;
        app.write(task_id(&document)).await;
        let path = format!("/images/{}", image_id(&document));
        let get = |headers: &[(&str, &str)]| {
            let mut request = Request::get(&path);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            app.send(request, "")
        };
        let all = get(&[]).await;
        assert_eq!(all.body, whole);
        assert_eq!(all.header("accept-ranges"), "bytes");
        let (tag, date) = (all.header("etag"), all.header("last-modified"));

        let part = get(&[("range", "bytes=1000-1999")]).await;
        assert_eq!(part.status.as_u16(), 206);
        assert_eq!(part.body, whole[1000..2000]);
        assert_eq!(part.header("content-range"), format!("bytes 1000-1999/{bytes}"));
        assert_eq!(part.header("content-length"), "1000");
        assert_eq!(part.header("content-type"), "image/png");
        assert_eq!(part.header("etag"), tag);
        let tail = get(&[("range", "bytes=-7"), ("if-range", tag)]).await;
        assert_eq!(tail.body, whole[bytes - 7..]);
        assert_eq!(get(&[("range", "bytes=0-0"), ("if-range", date)]).await.body, whole[..1]);
        let other = get(&[("range", "bytes=0-0"), ("if-range", "\"other\"")]).await;
        assert_eq!((other.status.as_u16(), other.body.len()), (200, bytes));

        let several = get(&[("range", "bytes=2000-2099,0-9,4990-4999")]).await;
        assert_eq!(several.status.as_u16(), 206);
        let media_type = several.header("content-type");
        let (kind, boundary) = media_type.split_once("; boundary=").expect("a boundary");
        assert_eq!(kind, "multipart/byteranges");
        assert_eq!(several.header("content-length"), several.body.len().to_string());
        let marks = several.body.windows(boundary.len()).filter(|w| *w == boundary.as_bytes());
        assert_eq!(marks.count(), 4);
        assert!(several.body.windows(100).any(|window| *window == whole[2000..2100]));

        let none = get(&[("range", &format!("bytes={bytes}-"))]).await;
        assert_eq!(none.header("content-range"), format!("bytes */{bytes}"));
        none.assert_problem(416, "range_not_satisfiable");
        assert_eq!(get(&[("range", "bytes=z")]).await.status.as_u16(), 200);
        assert_eq!(get(&[("if-modified-since", date)]).await.status.as_u16(), 304);
        let head = Request::builder().method(Method::HEAD).uri(&path);
        let head = app.send(head.header("range", "bytes=0-9"), "").await;
        assert_eq!(head.status.as_u16(), 200, "HEAD ignores ranges");
    }
}

#[tokio::test]
async fn clients_choose_among_the_formats_of_a_preset() {
    let presets = r#"{ card = { size = 9, format = ["auto", "webp"] }, plain = { size = 9 } }"#;
    let app = TestApp::configured(&[("SAFELIGHT_PRESETS", presets)]).await;
    let document = app.upload(fake_png(500, 1)).await;
    let (task, image) = (task_id(&document), image_id(&document));
    app.write(task).await;
    let (lease, stored) = app.claim(task, JobKind::Thumbnail).await;
    let mut renditions = Vec::new();
    for (preset, format, bytes) in [
        ("card", ImageFormat::Jpeg, "a larger JPEG"),
        ("card", ImageFormat::Webp, "WebP"),
        ("plain", ImageFormat::Jpeg, "JPEG"),
    ] {
        let made = app.rendition(preset, format, bytes.as_bytes());
        let key = BlobKey::rendition(stored.sha256, &made);
        app.parts.blobs.put(&key, bytes.into()).await.expect("stored");
        renditions.push(made);
    }
    app.settle(lease, Outcome::Succeeded(vec![Effect::UpsertRenditions(renditions)])).await;
    let get = async |preset: &str, accept: &str| {
        let path = format!("/images/{image}/{preset}");
        app.send(Request::get(path).header("accept", accept), "").await
    };
    for (accept, media_type, body) in [
        ("image/avif,image/webp,*/*;q=0.8", "image/webp", "WebP"),
        ("*/*", "image/jpeg", "a larger JPEG"),
        ("image/webp;q=0, image/*", "image/jpeg", "a larger JPEG"),
    ] {
        let answer = get("card", accept).await;
        assert_eq!((answer.header("content-type"), &*answer.text()), (media_type, body));
        assert_eq!(answer.header("vary"), "accept");
        assert_eq!(answer.header("etag"), format!("\"{}\"", ContentHash::of(body.as_bytes())));
    }
    let plain = get("plain", "image/webp").await;
    assert_eq!((plain.text().as_str(), plain.header("vary")), ("JPEG", ""));
}

#[tokio::test]
async fn responses_name_their_cache_tier() {
    let app = TestApp::new().await;
    let document = app.upload(fake_png(5_000, 1)).await;
    app.write(task_id(&document)).await;
    let path = format!("/images/{}", image_id(&document));
    let first = app.get(&path).await;
    assert_eq!(first.header("cache-status"), "safelight; fwd=uri-miss; stored; detail=store");
    let second = app.get(&path).await;
    assert_eq!(second.header("cache-status"), "safelight; hit; detail=memory");
    let request = Request::get(&path).header("if-none-match", first.header("etag"));
    let known = app.send(request, "").await;
    assert_eq!(known.header("cache-status"), "safelight; hit; detail=metadata");
}

#[tokio::test]
async fn cached_images_are_served_while_the_database_is_unavailable() {
    let fault = Arc::new(AtomicU8::new(Fault::None as u8));
    let handle = fault.clone();
    let keys = [("SAFELIGHT_METADATA_CACHE_MS", "0")];
    let app = TestApp::with(&keys, ApiOptions::default(), move |inner| {
        Arc::new(FaultyStore { inner, plan: FaultSwitch(handle) })
    })
    .await;
    let document = app.upload(fake_png(5_000, 1)).await;
    app.write(task_id(&document)).await;
    let path = format!("/images/{}", image_id(&document));
    let fresh = app.get(&path).await;
    fault.store(Fault::Unavailable as u8, Ordering::SeqCst);
    for _ in 0..3 {
        let stale = app.get(&path).await;
        assert_eq!((stale.status.as_u16(), &stale.body), (200, &fresh.body));
        assert_eq!(stale.header("cache-control"), "no-store", "the entry may be outdated");
    }
    let unknown = app.get(&format!("/images/{}", ImageId::new())).await;
    unknown.assert_problem(503, "database_unavailable");
    fault.store(Fault::None as u8, Ordering::SeqCst);
    eventually(async || app.get(&path).await.header("cache-control").contains("immutable")).await;
}

#[tokio::test]
async fn one_request_at_a_time_waits_for_a_hanging_database() {
    let fault = Arc::new(AtomicU8::new(Fault::None as u8));
    let handle = fault.clone();
    let keys = [("SAFELIGHT_METADATA_CACHE_MS", "0")];
    let app = TestApp::with(&keys, ApiOptions::default(), move |inner| {
        Arc::new(FaultyStore { inner, plan: FaultSwitch(handle) })
    })
    .await;
    let document = app.upload(fake_png(5_000, 1)).await;
    app.write(task_id(&document)).await;
    let path = format!("/images/{}", image_id(&document));
    assert_eq!(app.get(&path).await.status.as_u16(), 200);
    fault.store(Fault::Hangs as u8, Ordering::SeqCst);
    let started = Instant::now();
    for _ in 0..40 {
        let stale = app.get(&path).await;
        assert_eq!((stale.status.as_u16(), stale.header("cache-control")), (200, "no-store"));
    }
    // If each request waited, each would take a quarter of a second.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    fault.store(Fault::None as u8, Ordering::SeqCst);
    eventually(async || app.get(&path).await.header("cache-control").contains("immutable")).await;
}

#[tokio::test]
async fn requests_that_share_a_large_read_report_it() {
    let app = TestApp::configured(&[("SAFELIGHT_MEMORY_CACHE_BYTES", "1000000")]).await;
    let document = app.upload(fake_png(3_000_000, 1)).await;
    app.write(task_id(&document)).await;
    let path = format!("/images/{}", image_id(&document));
    let get = async || {
        let request = Request::get(&path).body(Body::empty()).expect("a request");
        app.api.answer(addressed(request)).await.expect("a response")
    };
    let (first, second) = (get().await, get().await);
    assert_eq!(first.headers()["cache-status"], "safelight; fwd=uri-miss; detail=store");
    let shared = "safelight; fwd=uri-miss; collapsed; detail=store";
    assert_eq!(second.headers()["cache-status"], shared);
    drop((first, second));
    assert_eq!(get().await.headers()["cache-status"], "safelight; fwd=uri-miss; detail=store");
}

#[tokio::test]
async fn preconditions_are_enforced() {
    let app = TestApp::new().await;
    let document = app.upload(fake_png(5_000, 1)).await;
    app.write(task_id(&document)).await;
    let path = format!("/images/{}", image_id(&document));
    let tag = app.get(&path).await.header("etag").to_owned();
    let ask = |headers: [(&str, &str); 2]| {
        let request = Request::get(&path);
        app.send(headers.iter().fold(request, |r, (name, value)| r.header(*name, *value)), "")
    };
    let known = ask([("if-match", &tag), ("if-none-match", &tag)]).await;
    assert_eq!(known.status.as_u16(), 304);
    // The first condition decides before the second is evaluated.
    let other = ask([("if-match", "\"other\""), ("if-none-match", &tag)]).await;
    other.assert_problem(412, "precondition_failed");
    let long_ago = "Sun, 06 Nov 1994 08:49:37 GMT";
    let changed = ask([("if-unmodified-since", long_ago), ("range", "bytes=0-0")]).await;
    changed.assert_problem(412, "precondition_failed");
}

#[tokio::test]
async fn invalid_wait_parameter_is_always_rejected_and_an_invalid_preference_never() {
    let app = TestApp::new().await;
    let document = app.upload(fake_png(500, 1)).await;
    app.write(task_id(&document)).await;
    let path = format!("/images/{}", image_id(&document));
    // From now on the image is in memory.
    assert_eq!(app.get(&path).await.status.as_u16(), 200);
    app.get(&format!("{path}?wait=x")).await.assert_problem(400, "invalid_query");
    let preferred = app.send(Request::get(&path).header("prefer", "wait=x"), "").await;
    assert_eq!(preferred.status.as_u16(), 200);
    assert_eq!(app.get(&format!("{path}?v=x&wait=3")).await.status.as_u16(), 200);
}

#[tokio::test]
async fn nodes_serve_only_their_half_of_the_api() {
    let delivery = ApiOptions { uploads: false, delivery: true };
    let app = TestApp::with(&[], delivery, |store| store).await;
    let answer = app.send(Request::post("/v1/images"), fake_png(500, 1)).await;
    let problem = answer.assert_problem(404, "not_found");
    assert!(problem["hint"].as_str().is_some_and(|hint| hint.contains("does not serve uploads")));
    let document = app.get("/openapi.json").await.json();
    assert!(document["paths"]["/v1/images"].is_null());
    let uploads = ApiOptions { uploads: true, delivery: false };
    let app = TestApp::with(&[], uploads, |store| store).await;
    let image = image_id(&app.upload(fake_png(500, 1)).await);
    app.get(&format!("/images/{image}")).await.assert_problem(404, "not_found");
    assert_eq!(app.get("/livez").await.status.as_u16(), 200);
}

#[tokio::test]
async fn damaged_bytes_are_never_served() {
    let app = TestApp::new().await;
    let document = app.upload(fake_png(5_000, 1)).await;
    let (task, image) = (task_id(&document), image_id(&document));
    let stored = app.write(task).await;
    let (blobs, key) = (&app.parts.blobs, BlobKey::Blob(stored.sha256));
    blobs.put(&key, "cut short".into()).await.expect("damaged");
    let path = format!("/images/{image}");
    let answer = app.get(&path).await;
    assert_eq!(answer.header("cache-control"), "no-store");
    answer.assert_problem(500, "blob_damaged");
    blobs.delete(&key).await.expect("deleted");
    app.get(&path).await.assert_problem(500, "blob_damaged");
    // No damaged bytes were cached: the restored object is served.
    blobs.put(&key, fake_png(5_000, 1).into()).await.expect("restored");
    assert_eq!(app.get(&path).await.body, fake_png(5_000, 1));
}
