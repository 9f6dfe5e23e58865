//! Cancelling, retrying, and the bound on queued work.

use axum::http::Request;
use safelight_domain::{ErrorCode, Failure, JobKind, TaskId};
use serde_json::{Value, json};

use crate::app::{TestApp, TestResponse, fake_png, image_id, task_id};

async fn post(app: &TestApp, path: &str) -> TestResponse {
    app.send(Request::post(path), "").await
}

async fn failed(app: &TestApp, code: ErrorCode) -> TaskId {
    let task = task_id(&app.upload(fake_png(500, 1)).await);
    app.write(task).await;
    app.fail(task, JobKind::Thumbnail, Failure::new(code, "failed by the test")).await;
    task
}

#[tokio::test]
async fn cancelled_task_stays_cancelled_and_its_image_is_gone() {
    let app = TestApp::new().await;
    let document = app.upload(fake_png(500, 1)).await;
    let (task, image) = (task_id(&document), image_id(&document));
    for _ in 0..2 {
        // The second request is that of a client that lost the first response.
        let answer = post(&app, &format!("/v1/tasks/{task}/cancel")).await;
        assert_eq!(answer.status.as_u16(), 202);
        assert_eq!(answer.json()["status"], "cancelled");
        assert!(answer.json()["finished_at"].is_string());
    }
    for path in [
        format!("/images/{image}"),
        format!("/images/{image}/small"),
        format!("/v1/images/{image}"),
    ] {
        app.get(&path).await.assert_problem(410, "image_cancelled");
    }
    assert_eq!(app.get("/v1/images").await.json()["images"], json!([]));
    let again = post(&app, &format!("/v1/tasks/{task}/retry")).await;
    again.assert_problem(409, "task_discarded");
}

#[tokio::test]
async fn rejected_cancel_or_retry_says_why() {
    let app = TestApp::new().await;
    let task = failed(&app, ErrorCode::CorruptImage).await;
    post(&app, &format!("/v1/tasks/{task}/cancel")).await.assert_problem(409, "task_ended");
    let queued = task_id(&app.upload(fake_png(500, 2)).await);
    post(&app, &format!("/v1/tasks/{queued}/retry")).await.assert_problem(409, "task_not_failed");
    let unknown = TaskId::new();
    for action in ["cancel", "retry"] {
        let path = format!("/v1/tasks/{unknown}/{action}");
        post(&app, &path).await.assert_problem(404, "task_not_found");
        app.get(&path).await.assert_problem(405, "method_not_allowed");
    }
}

#[tokio::test]
async fn retry_queues_a_failed_task_again() {
    let app = TestApp::new().await;
    let task = failed(&app, ErrorCode::StoreUnavailable).await;
    let answer = post(&app, &format!("/v1/tasks/{task}/retry")).await;
    assert_eq!(answer.status.as_u16(), 202);
    let document = answer.json();
    assert_eq!((&document["status"], &document["error"]), (&json!("queued"), &Value::Null));
    assert_eq!(document["progress"], json!({"total": 2, "succeeded": 1, "failed": 0}));
    app.render(task, b"small").await;
    let done = app.get(&format!("/v1/tasks/{task}")).await.json();
    assert_eq!(done["status"], "succeeded");
}

#[tokio::test]
async fn failed_tasks_are_retried_by_filter() {
    let app = TestApp::new().await;
    let outage = failed(&app, ErrorCode::StoreUnavailable).await;
    let corrupt = failed(&app, ErrorCode::CorruptImage).await;
    app.upload(fake_png(500, 2)).await;

    let list = async |query: &str| {
        let found = app.get(&format!("/v1/tasks?{query}")).await.json();
        let tasks = found["tasks"].as_array().expect("tasks").clone();
        tasks.iter().map(task_id).collect::<Vec<_>>()
    };
    assert_eq!(list("status=failed").await, [corrupt, outage]);
    assert_eq!(list("status=failed&code=store_unavailable").await, [outage]);
    assert_eq!(list("status=failed&kind=thumbnail").await, [corrupt, outage]);
    assert_eq!(list("status=failed&kind=write").await, []);
    assert_eq!(list("kind=upload").await.len(), 3);
    assert_eq!(list("created_before=2020-01-01T00:00:00Z").await, []);
    assert_eq!(list("created_after=2020-01-01T00:00:00Z&owner=local").await.len(), 3);
    for bad in ["kind=elephant", "code=elephant", "created_after=monday", "owner=a&owner=b"] {
        app.get(&format!("/v1/tasks?{bad}")).await.assert_problem(400, "invalid_query");
    }

    let retry = async |query: &str| post(&app, &format!("/v1/tasks/retry?{query}")).await;
    let dry = retry("code=store_unavailable&dry_run=true").await.json();
    assert_eq!(dry, json!({"tasks": [outage], "dry_run": true, "next_cursor": null}));
    assert_eq!(list("status=failed").await.len(), 2, "a dry run changes nothing");
    let done = retry("code=store_unavailable").await.json();
    assert_eq!(done, json!({"tasks": [outage], "dry_run": false, "next_cursor": null}));
    assert_eq!(list("status=failed").await, [corrupt]);
    retry("status=queued").await.assert_problem(400, "invalid_query");
    retry("dry_run=perhaps").await.assert_problem(400, "invalid_query");

    // A script retries page by page.
    failed(&app, ErrorCode::CorruptImage).await;
    retry("limit=1").await.assert_problem(400, "invalid_query");
    let first = retry("limit=1&all=true").await.json();
    let cursor = first["next_cursor"].as_str().expect("a second page").to_owned();
    let second = retry(&format!("limit=1&all=true&cursor={cursor}")).await.json();
    assert_eq!(second["tasks"], json!([corrupt]));
    assert_eq!(list("status=failed").await, []);
}

#[tokio::test]
async fn full_backlog_rejects_uploads_unread() {
    let app = TestApp::configured(&[("SAFELIGHT_MAX_QUEUED_JOBS", "3")]).await;
    let first = app.upload(fake_png(500, 1)).await;
    app.upload(fake_png(500, 2)).await;
    let rejected = app.send(Request::post("/v1/images"), fake_png(500, 3)).await;
    rejected.assert_problem(503, "too_many_jobs");
    assert_eq!(rejected.header("retry-after"), "10");
    assert_eq!(app.originals().len(), 2);
    // Finished work frees capacity.
    post(&app, &format!("/v1/tasks/{}/cancel", task_id(&first))).await;
    crate::app::eventually(async || {
        app.send(Request::post("/v1/images"), fake_png(500, 3)).await.status.as_u16() == 202
    })
    .await;
}
