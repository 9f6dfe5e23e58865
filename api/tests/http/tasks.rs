//! Reading tasks and images.

use std::time::{Duration, Instant};

use axum::http::Request;
use http_body_util::BodyExt;
use safelight_domain::{ErrorCode, Failure, JobKind};
use serde_json::{Value, json};

use crate::app::{TestApp, addressed, fake_png, image_id, task_id};

#[tokio::test]
async fn document_follows_its_task_to_the_end() {
    let app = TestApp::new().await;
    let task = task_id(&app.upload(fake_png(500, 1)).await);
    let path = format!("/v1/tasks/{task}");
    let queued = app.get(&path).await;
    assert_eq!(queued.header("retry-after"), "1");
    assert_eq!(queued.json()["image"]["placeholder"], Value::Null);
    app.write(task).await;
    app.render(task, b"small").await;
    let done = app.get(&path).await;
    assert_ne!(queued.header("etag"), done.header("etag"));
    assert_eq!(done.header("retry-after"), "");
    assert_eq!(done.header("cache-control"), "private, no-cache");
    let document = done.json();
    let image = image_id(&document);
    assert_eq!(document["status"], "succeeded");
    assert_eq!(document["progress"], json!({"total": 2, "succeeded": 2, "failed": 0}));
    assert_eq!(document["image"]["width"], 30);
    let url = document["image"]["renditions"]["small"]["url"].clone();
    let version = format!("/images/{image}/small?v=");
    assert!(url.as_str().is_some_and(|url| url.starts_with(&version)), "{url}");
    assert_eq!(
        document["image"]["renditions"]["small"],
        json!({
            "url": url,
            "width": 3, "height": 2, "format": "jpeg", "bytes": 5,
        })
    );
    let placeholder = json!({"thumbhash": "AQcSHf4=", "dominant_color": "#0011ff"});
    assert_eq!(document["image"]["placeholder"], placeholder);
    let single = app.get(&format!("/v1/images/{image}")).await.json();
    assert_eq!(single["placeholder"], placeholder);
    let listed = app.get("/v1/images").await.json();
    assert_eq!(listed["images"][0]["placeholder"], placeholder);
    assert!(document["finished_at"].as_str().is_some_and(|at| at.ends_with('Z')));
    // A document that the client has is not sent again.
    let request = Request::get(&path).header("if-none-match", done.header("etag"));
    let unchanged = app.send(request, "").await;
    assert_eq!(unchanged.status.as_u16(), 304);
    assert!(unchanged.body.is_empty());
    assert_eq!(unchanged.header("etag"), done.header("etag"));
}

#[tokio::test]
async fn failed_task_says_why() {
    let app = TestApp::new().await;
    let task = task_id(&app.upload(fake_png(500, 1)).await);
    app.write(task).await;
    let failure = Failure::new(ErrorCode::CorruptImage, "the data ends early");
    app.fail(task, JobKind::Thumbnail, failure).await;
    let document = app.get(&format!("/v1/tasks/{task}")).await.json();
    let error =
        json!({"code": "corrupt_image", "message": "the data ends early", "retryable": false});
    assert_eq!(document["status"], "failed");
    assert_eq!(document["error"], error);
    assert_eq!(document["jobs"][1]["error"], error);
}

#[tokio::test]
async fn response_is_held_until_the_task_is_final() {
    let app = TestApp::new().await;
    let task = task_id(&app.upload(fake_png(500, 1)).await);
    let request = Request::get(format!("/v1/tasks/{task}")).header("prefer", "wait=60");
    let work = async {
        app.write(task).await;
        app.render(task, b"x").await;
    };
    let (answer, ()) = tokio::join!(app.send(request, ""), work);
    assert_eq!(answer.json()["status"], "succeeded");
    assert_eq!(answer.header("preference-applied"), "wait=60");
    // A wait that times out returns the current state.
    let request = Request::post("/v1/images").header("prefer", "wait=1");
    let started = Instant::now();
    let answer = app.send(request, fake_png(500, 2)).await;
    assert_eq!(answer.status.as_u16(), 202);
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(answer.json()["status"], "queued");
    assert_eq!(answer.header("preference-applied"), "wait=1");
}

/// Reads an event stream to its end. Returns the id and document of each event.
async fn read_events(app: &TestApp, request: axum::http::request::Builder) -> Vec<(String, Value)> {
    let answer = app.send(request, "").await;
    assert_eq!(answer.status.as_u16(), 200);
    assert_eq!(answer.header("content-type"), "text/event-stream");
    let text = answer.text();
    let blocks = text.split("\n\n").filter(|block| block.contains("data:"));
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {block}")).trim().to_owned()
    };
    blocks
        .map(|block| {
            assert_eq!(field(block, "event:"), "task");
            let data = serde_json::from_str(&field(block, "data:")).expect("one line of JSON");
            (field(block, "id:"), data)
        })
        .collect()
}

#[tokio::test]
async fn event_stream_follows_a_task_and_ends() {
    let app = TestApp::new().await;
    let task = task_id(&app.upload(fake_png(500, 1)).await);
    let path = format!("/v1/tasks/{task}/events");
    let work = async {
        app.write(task).await;
        app.render(task, b"x").await;
    };
    let (events, ()) = tokio::join!(read_events(&app, Request::get(&path)), work);
    let versions: Vec<i64> = events.iter().map(|(id, _)| id.parse().expect("a number")).collect();
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    let (last, document) = events.last().expect("an event");
    assert_eq!(document["status"], "succeeded");
    // A client that has seen the last event gets 204. Any other gets the last event.
    let request = Request::get(&path).header("last-event-id", last);
    assert_eq!(app.send(request, "").await.status.as_u16(), 204);
    for seen in ["1", "unknown"] {
        let rest = read_events(&app, Request::get(&path).header("last-event-id", seen)).await;
        assert_eq!(rest.len(), 1);
        assert_eq!(&rest[0].0, last);
    }
}

#[tokio::test]
async fn reconnecting_client_gets_only_newer_events() {
    let app = TestApp::new().await;
    let task = task_id(&app.upload(fake_png(500, 1)).await);
    let request = Request::get(format!("/v1/tasks/{task}/events"))
        .header("last-event-id", "1")
        .body(axum::body::Body::empty());
    let response = app.api.answer(addressed(request.expect("a request"))).await;
    let mut body = response.expect("a response").into_body();
    app.write(task).await;
    let frame = body.frame().await.expect("an event").expect("a frame");
    let text = String::from_utf8(frame.into_data().expect("data").to_vec()).expect("text");
    assert!(!text.contains("id: 1\n"), "{text}");
    assert!(text.contains("\"running\""), "{text}");
}

/// Reads all pages of a list. Returns the ids on each page.
async fn walk(app: &TestApp, path: &str, member: &str) -> Vec<Vec<String>> {
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = app.get(&format!("{path}{cursor}")).await.json();
        let rows = page[member].as_array().expect("rows");
        pages.push(rows.iter().map(|row| row["id"].as_str().expect("an id").to_owned()).collect());
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return pages,
        }
    }
}

#[tokio::test]
async fn lists_are_paged_newest_first() {
    let app = TestApp::new().await;
    let (mut tasks, mut images) = (Vec::new(), Vec::new());
    for seed in 0..5 {
        let document = app.upload(fake_png(500, seed)).await;
        tasks.insert(0, task_id(&document).to_string());
        images.insert(0, image_id(&document).to_string());
    }
    let pages = walk(&app, "/v1/tasks?limit=2", "tasks").await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    assert_eq!(pages.concat(), tasks);
    assert_eq!(walk(&app, "/v1/images?limit=2", "images").await.concat(), images);
    // Filters.
    let failed = tasks[2].parse().expect("an id");
    let failure = Failure::new(ErrorCode::NotAnImage, "x");
    app.write(failed).await;
    app.fail(failed, JobKind::Thumbnail, failure).await;
    let pages = walk(&app, "/v1/tasks?status=failed&kind=upload&limit=2", "tasks").await;
    assert_eq!(pages.concat(), [tasks[2].clone()]);
    assert!(walk(&app, "/v1/tasks?kind=backfill", "tasks").await.concat().is_empty());
    // A cursor of one list is not valid for another.
    let page = app.get("/v1/tasks?limit=1").await.json();
    let cursor = page["next_cursor"].as_str().expect("a cursor");
    app.get(&format!("/v1/images?cursor={cursor}")).await.assert_problem(400, "invalid_query");
}

#[tokio::test]
async fn images_show_their_metadata() {
    let app = TestApp::new().await;
    let document = app.upload(fake_png(500, 1)).await;
    let path = format!("/v1/images/{}", image_id(&document));
    let before = app.get(&path).await;
    assert_eq!(before.json()["sha256"], document["image"]["sha256"]);
    assert_eq!(before.json()["orientation"], json!(null));
    app.write(task_id(&document)).await;
    let after = app.get(&path).await;
    assert_eq!(after.json()["orientation"], 1);
    let request = Request::get(&path).header("if-none-match", after.header("etag"));
    assert_eq!(app.send(request, "").await.status.as_u16(), 304);
}

#[tokio::test]
async fn images_show_their_upright_size() {
    let app = TestApp::new().await;
    for orientation in 1..=8 {
        let document = app.upload(fake_png(500, orientation)).await;
        let (task, image) = (task_id(&document), image_id(&document));
        assert_eq!(document["image"]["stored_width"], Value::Null);
        app.write_turned(task, orientation).await;
        let (width, height) = if orientation < 5 { (30, 20) } else { (20, 30) };
        let single = app.get(&format!("/v1/images/{image}")).await.json();
        let task = app.get(&format!("/v1/tasks/{task}")).await.json();
        let listed = app.get("/v1/images").await.json();
        for shown in [&single, &task["image"], &listed["images"][0]] {
            let found = ["width", "height", "stored_width", "stored_height", "orientation"]
                .map(|key| shown[key].as_u64());
            let expected = [width, height, 30, 20, u64::from(orientation)].map(Some);
            assert_eq!(found, expected, "orientation {orientation}");
        }
    }
}
