//! Deletions as clients see them.

use std::{
    convert::Infallible,
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
};

use async_trait::async_trait;
use axum::{
    body::Body,
    http::{Request, request::Builder},
    response::Response,
};
use safelight_api::{Api, ApiOptions};
use safelight_domain::{ErrorCode, Failure, ImageId, JobKind, TaskId};
use safelight_store::{
    StoreError,
    testing::{Call, FaultPlan, FaultyStore},
};
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinHandle};

use crate::{
    app::{
        TestApp, TestResponse, addressed, fake_png, image_id, multipart, multipart_request, task_id,
    },
    fault_switch::{Fault, FaultSwitch},
};

/// Deletions become due after one second.
const SHORT_CACHE: &[(&str, &str)] = &[("SAFELIGHT_METADATA_CACHE_MS", "0")];

async fn delete(app: &TestApp, image: ImageId) -> TestResponse {
    app.send(Request::delete(format!("/v1/images/{image}")), "").await
}

async fn deleted(app: &TestApp, image: ImageId) -> Value {
    let answer = delete(app, image).await;
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
    answer.json()
}

/// An upload with all labels. Its jobs are done.
async fn stored(app: &TestApp) -> (TaskId, ImageId) {
    let body = multipart(&[
        ("name=\"title\"", b"Secret"),
        ("name=\"tags\"", b"a,b"),
        ("name=\"file\"; filename=\"secret.png\"", &fake_png(500, 1)),
    ]);
    let document = app.send(multipart_request(), body).await.json();
    let task = task_id(&document);
    app.write(task).await;
    app.render(task, b"small").await;
    (task, image_id(&document))
}

#[tokio::test]
async fn deleted_image_is_gone_immediately_and_its_task_is_the_receipt() {
    let app = TestApp::configured(SHORT_CACHE).await;
    let (upload, image) = stored(&app).await;
    let path = format!("/images/{image}");
    assert_eq!(app.get(&path).await.status.as_u16(), 200);

    let answer = delete(&app, image).await;
    assert_eq!(answer.status.as_u16(), 202);
    let task = answer.json();
    let id = task_id(&task);
    assert_eq!(answer.header("location"), format!("/v1/tasks/{id}"));
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!((&task["kind"], &task["status"]), (&json!("delete"), &json!("queued")));
    let gone = app.get(&path).await;
    assert_eq!(gone.header("cache-control"), "no-store");
    gone.assert_problem(410, "image_deleted");
    for path in [format!("{path}/small"), format!("/v1/images/{image}")] {
        app.get(&path).await.assert_problem(410, "image_deleted");
    }
    assert_eq!(app.get("/v1/images").await.json()["images"], json!([]));

    let made = |preset| json!({"preset": preset, "format": "jpeg", "bytes": 5});
    let mut receipt = json!({
        "original_bytes": 500, "bytes": 515, "proxies": null, "removed_at": null,
        "renditions": [made("large"), made("medium"), made("small")],
    });
    assert_eq!(task["receipt"], receipt);
    app.remove(id).await;
    let done = app.get(&format!("/v1/tasks/{id}")).await;
    assert_eq!(done.header("retry-after"), "");
    receipt["proxies"] = json!(2);
    receipt["removed_at"] = done.json()["finished_at"].clone();
    assert_eq!((&done.json()["status"], &done.json()["receipt"]), (&json!("succeeded"), &receipt));

    // The upload's task is redacted too.
    for task in [id, upload] {
        let document = app.get(&format!("/v1/tasks/{task}")).await;
        let shown = &document.json()["image"];
        for field in ["title", "filename", "sha256", "placeholder", "taken_at"] {
            assert_eq!(shown[field], Value::Null, "{field} of {shown}");
        }
        assert_eq!((&shown["tags"], &shown["renditions"]), (&json!([]), &json!({})));
        assert!(!document.text().to_lowercase().contains("secret"));
    }
    assert_eq!(app.get("/v1/tasks?kind=delete").await.json()["tasks"][0]["id"], json!(id));
}

#[tokio::test]
async fn repeated_deletion_returns_the_same_task() {
    let app = TestApp::configured(SHORT_CACHE).await;
    delete(&app, ImageId::new()).await.assert_problem(404, "image_not_found");
    let (_, image) = stored(&app).await;
    let first = deleted(&app, image).await;
    let id = task_id(&first);
    assert_eq!(deleted(&app, image).await, first);
    app.remove(id).await;
    let last = delete(&app, image).await;
    assert_eq!((last.status.as_u16(), &last.json()["status"]), (202, &json!("succeeded")));
    assert_eq!((task_id(&last.json()), last.header("retry-after")), (id, ""));
}

#[tokio::test]
async fn deletion_cannot_be_cancelled_and_is_retried_when_failed() {
    let app = TestApp::configured(SHORT_CACHE).await;
    let (upload, image) = stored(&app).await;
    let id = task_id(&deleted(&app, image).await);
    let post = async |task: TaskId, what: &str| {
        app.send(Request::post(format!("/v1/tasks/{task}/{what}")), "").await
    };
    post(id, "cancel").await.assert_problem(409, "task_not_cancellable");
    post(upload, "cancel").await.assert_problem(409, "task_ended");
    crate::app::eventually(async || {
        app.parts
            .store
            .job_counts()
            .await
            .expect("counts")
            .iter()
            .any(|count| count.kind == JobKind::Delete && count.due == 1)
    })
    .await;
    app.fail(id, JobKind::Delete, Failure::new(ErrorCode::WorkerPanicked, "a bug")).await;
    post(id, "cancel").await.assert_problem(409, "task_ended");
    post(upload, "retry").await.assert_problem(409, "task_discarded");
    let again = deleted(&app, image).await;
    assert_eq!((task_id(&again), &again["status"]), (id, &json!("queued")));
}

#[tokio::test]
async fn cancelled_image_can_be_deleted() {
    let app = TestApp::configured(SHORT_CACHE).await;
    let document = app.upload(fake_png(500, 1)).await;
    let (task, image) = (task_id(&document), image_id(&document));
    app.send(Request::post(format!("/v1/tasks/{task}/cancel")), "").await;
    let path = format!("/v1/images/{image}");
    app.get(&path).await.assert_problem(410, "image_cancelled");
    deleted(&app, image).await;
    app.get(&path).await.assert_problem(410, "image_deleted");
    app.get(&format!("/images/{image}")).await.assert_problem(410, "image_deleted");
}

#[tokio::test]
async fn client_can_wait_for_the_end_of_a_deletion() {
    let app = TestApp::configured(SHORT_CACHE).await;
    let (_, image) = stored(&app).await;
    let request = |wait| Request::delete(format!("/v1/images/{image}")).header("prefer", wait);
    let waiting = app.send(request("wait=30"), "");
    let working = async {
        let mut task = None;
        crate::app::eventually(async || {
            let list = app.get("/v1/tasks?kind=delete").await.json();
            task = list["tasks"].get(0).map(task_id);
            task.is_some()
        })
        .await;
        app.remove(task.expect("a task")).await;
    };
    let (answer, ()) = tokio::join!(waiting, working);
    assert_eq!(answer.header("preference-applied"), "wait=30");
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (202, &json!("succeeded")));
}

#[tokio::test]
async fn known_deletion_answers_410_without_the_database() {
    let fault = Arc::new(AtomicU8::new(Fault::None as u8));
    let handle = fault.clone();
    let app = TestApp::with(SHORT_CACHE, ApiOptions::default(), |inner| {
        Arc::new(FaultyStore { inner, plan: FaultSwitch(handle) })
    })
    .await;
    let (_, image) = stored(&app).await;
    let path = format!("/images/{image}");
    assert_eq!(app.get(&path).await.status.as_u16(), 200);
    deleted(&app, image).await;
    fault.store(Fault::Unavailable as u8, Ordering::SeqCst);
    app.get(&path).await.assert_problem(410, "image_deleted");
}

/// Delays the response of one call of a store method.
struct DelayedCall(&'static str, Arc<Barrier>);

struct Barrier {
    armed: AtomicBool,
    reached: Semaphore,
    released: Semaphore,
}

impl Barrier {
    fn new() -> Arc<Self> {
        let none = || Semaphore::new(0);
        Arc::new(Self { armed: AtomicBool::new(false), reached: none(), released: none() })
    }

    /// Starts a request, and waits until its store call is held.
    async fn start_and_hold(&self, app: &TestApp, request: Builder) -> PendingRequest {
        self.armed.store(true, Ordering::SeqCst);
        let (api, request) = (app.api.clone(), request.body(Body::empty()));
        let pending =
            tokio::spawn(async move { api.answer(addressed(request.expect("a request"))).await });
        self.reached.acquire().await.expect("never closed").forget();
        pending
    }
}

type PendingRequest = JoinHandle<Result<Response, Infallible>>;

#[async_trait]
impl FaultPlan for DelayedCall {
    async fn before(&self, _: Call<'_>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn after(&self, call: Call<'_>, _: &(dyn Debug + Sync)) -> Result<(), StoreError> {
        let Self(method, barrier) = self;
        if call.method == *method && barrier.armed.swap(false, Ordering::SeqCst) {
            barrier.reached.add_permits(1);
            barrier.released.acquire().await.expect("never closed").forget();
        }
        Ok(())
    }
}

#[tokio::test]
async fn lookup_started_before_a_deletion_does_not_undo_it() {
    let barrier = Barrier::new();
    let plan = DelayedCall("image", barrier.clone());
    let keys = [("SAFELIGHT_METADATA_CACHE_MS", "60000")];
    let app =
        TestApp::with(&keys, ApiOptions::default(), |inner| Arc::new(FaultyStore { inner, plan }))
            .await;
    let (_, image) = stored(&app).await;
    let path = format!("/images/{image}");
    let pending = barrier.start_and_hold(&app, Request::get(&path)).await;
    deleted(&app, image).await;
    barrier.released.add_permits(1);
    let answer = pending.await.expect("no panic").expect("a response");
    assert_eq!(answer.status().as_u16(), 410, "the response was sent after the deletion");
    app.get(&path).await.assert_problem(410, "image_deleted");
}

#[tokio::test]
async fn deletion_takes_effect_although_its_client_disconnects() {
    let barrier = Barrier::new();
    let plan = DelayedCall("delete_image", barrier.clone());
    let keys = [("SAFELIGHT_METADATA_CACHE_MS", "60000")];
    let app =
        TestApp::with(&keys, ApiOptions::default(), |inner| Arc::new(FaultyStore { inner, plan }))
            .await;
    let (_, image) = stored(&app).await;
    let path = format!("/images/{image}");
    assert_eq!(app.get(&path).await.status.as_u16(), 200);
    let pending =
        barrier.start_and_hold(&app, Request::delete(format!("/v1/images/{image}"))).await;
    pending.abort();
    assert!(pending.await.is_err_and(|error| error.is_cancelled()));
    barrier.released.add_permits(1);
    crate::app::eventually(async || app.get(&path).await.status.as_u16() == 410).await;
}

#[tokio::test]
async fn node_drops_cached_bytes_of_a_deleted_image() {
    let app = TestApp::configured(SHORT_CACHE).await;
    let metrics = Arc::new(String::new);
    let other = Api::new(app.parts.clone(), metrics, ApiOptions::default());
    // Both have the same owner, so their bytes are one object in a cache.
    let (_, image) = stored(&app).await;
    let (_, equal) = stored(&app).await;
    for what in ["", "/small"] {
        let read = async |api: &Api, image: ImageId| {
            let request = Request::get(format!("/images/{image}{what}")).body(Body::empty());
            let answer =
                api.answer(addressed(request.expect("a request"))).await.expect("a response");
            answer.headers().get("cache-status").map(|how| how.to_str().expect("text").to_owned())
        };
        for api in [&app.api, &other] {
            read(api, image).await;
            let how = read(api, equal).await;
            assert_eq!(how.as_deref(), Some("safelight; hit; detail=memory"));
        }
        if what.is_empty() {
            continue;
        }
        deleted(&app, image).await;
        for api in [&app.api, &other] {
            assert_eq!(read(api, image).await, None, "the image is deleted");
            let how = read(api, equal).await;
            assert_eq!(how.as_deref(), Some("safelight; fwd=uri-miss; stored; detail=store"));
        }
    }
}
