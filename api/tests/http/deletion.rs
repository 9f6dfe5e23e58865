//! Deletion, as clients see it.

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
    bench::{Answer, Bench, image_id, multipart, multipart_request, picture, task_id},
    flaky::{Fault, Flaky},
};

/// Deletions are due a second after.
const HASTY: &[(&str, &str)] = &[("SAFELIGHT_METADATA_CACHE_MS", "0")];

async fn delete(bench: &Bench, image: ImageId) -> Answer {
    bench.send(Request::delete(format!("/v1/images/{image}")), "").await
}

async fn deleted(bench: &Bench, image: ImageId) -> Value {
    let answer = delete(bench, image).await;
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
    answer.json()
}

/// An upload with everything that a client can say, whose jobs are done.
async fn stored(bench: &Bench) -> (TaskId, ImageId) {
    let body = multipart(&[
        ("name=\"title\"", b"Secret"),
        ("name=\"tags\"", b"a,b"),
        ("name=\"file\"; filename=\"secret.png\"", &picture(500, 1)),
    ]);
    let document = bench.send(multipart_request(), body).await.json();
    let task = task_id(&document);
    bench.write(task).await;
    bench.render(task, b"small").await;
    (task, image_id(&document))
}

#[tokio::test]
async fn a_deleted_image_is_gone_at_once_and_its_task_is_the_receipt() {
    let bench = Bench::configured(HASTY).await;
    let (upload, image) = stored(&bench).await;
    let path = format!("/images/{image}");
    assert_eq!(bench.get(&path).await.status.as_u16(), 200);

    let answer = delete(&bench, image).await;
    assert_eq!(answer.status.as_u16(), 202);
    let task = answer.json();
    let id = task_id(&task);
    assert_eq!(answer.header("location"), format!("/v1/tasks/{id}"));
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!((&task["kind"], &task["status"]), (&json!("delete"), &json!("queued")));
    let gone = bench.get(&path).await;
    assert_eq!(gone.header("cache-control"), "no-store");
    gone.assert_problem(410, "image_deleted");
    for path in [format!("{path}/small"), format!("/v1/images/{image}")] {
        bench.get(&path).await.assert_problem(410, "image_deleted");
    }
    assert_eq!(bench.get("/v1/images").await.json()["images"], json!([]));

    let made = |preset| json!({"preset": preset, "format": "jpeg", "bytes": 5});
    let mut receipt = json!({
        "original_bytes": 500, "bytes": 515, "proxies": null, "removed_at": null,
        "renditions": [made("large"), made("medium"), made("small")],
    });
    assert_eq!(task["receipt"], receipt);
    bench.remove(id).await;
    let done = bench.get(&format!("/v1/tasks/{id}")).await;
    assert_eq!(done.header("retry-after"), "");
    receipt["proxies"] = json!(2);
    receipt["removed_at"] = done.json()["finished_at"].clone();
    assert_eq!((&done.json()["status"], &done.json()["receipt"]), (&json!("succeeded"), &receipt));

    // Nor does the upload's task tell any more.
    for task in [id, upload] {
        let document = bench.get(&format!("/v1/tasks/{task}")).await;
        let shown = &document.json()["image"];
        for field in ["title", "filename", "sha256", "placeholder", "taken_at"] {
            assert_eq!(shown[field], Value::Null, "{field} of {shown}");
        }
        assert_eq!((&shown["tags"], &shown["renditions"]), (&json!([]), &json!({})));
        assert!(!document.text().to_lowercase().contains("secret"));
    }
    assert_eq!(bench.get("/v1/tasks?kind=delete").await.json()["tasks"][0]["id"], json!(id));
}

#[tokio::test]
async fn asked_again_it_is_the_same_task() {
    let bench = Bench::configured(HASTY).await;
    delete(&bench, ImageId::new()).await.assert_problem(404, "image_not_found");
    let (_, image) = stored(&bench).await;
    let first = deleted(&bench, image).await;
    let id = task_id(&first);
    assert_eq!(deleted(&bench, image).await, first);
    bench.remove(id).await;
    let last = delete(&bench, image).await;
    assert_eq!((last.status.as_u16(), &last.json()["status"]), (202, &json!("succeeded")));
    assert_eq!((task_id(&last.json()), last.header("retry-after")), (id, ""));
}

#[tokio::test]
async fn a_deletion_cannot_be_cancelled_and_one_that_failed_is_tried_again() {
    let bench = Bench::configured(HASTY).await;
    let (upload, image) = stored(&bench).await;
    let id = task_id(&deleted(&bench, image).await);
    let post = async |task: TaskId, what: &str| {
        bench.send(Request::post(format!("/v1/tasks/{task}/{what}")), "").await
    };
    post(id, "cancel").await.assert_problem(409, "task_not_cancellable");
    post(upload, "cancel").await.assert_problem(409, "task_ended");
    crate::bench::until(async || {
        bench
            .services
            .store
            .job_counts()
            .await
            .expect("counts")
            .iter()
            .any(|count| count.kind == JobKind::Delete && count.due == 1)
    })
    .await;
    bench.fail(id, JobKind::Delete, Failure::new(ErrorCode::WorkerPanicked, "a bug")).await;
    post(id, "cancel").await.assert_problem(409, "task_ended");
    post(upload, "retry").await.assert_problem(409, "task_discarded");
    let again = deleted(&bench, image).await;
    assert_eq!((task_id(&again), &again["status"]), (id, &json!("queued")));
}

#[tokio::test]
async fn a_cancelled_image_can_be_deleted_for_what_is_known_of_it() {
    let bench = Bench::configured(HASTY).await;
    let document = bench.upload(picture(500, 1)).await;
    let (task, image) = (task_id(&document), image_id(&document));
    bench.send(Request::post(format!("/v1/tasks/{task}/cancel")), "").await;
    let path = format!("/v1/images/{image}");
    bench.get(&path).await.assert_problem(410, "image_cancelled");
    deleted(&bench, image).await;
    bench.get(&path).await.assert_problem(410, "image_deleted");
    bench.get(&format!("/images/{image}")).await.assert_problem(410, "image_deleted");
}

#[tokio::test]
async fn a_client_can_wait_for_the_end() {
    let bench = Bench::configured(HASTY).await;
    let (_, image) = stored(&bench).await;
    let request = |wait| Request::delete(format!("/v1/images/{image}")).header("prefer", wait);
    bench.send(request("wait=99"), "").await.assert_problem(400, "invalid_header");
    assert_eq!(bench.get(&format!("/images/{image}")).await.status.as_u16(), 200);
    let waiting = bench.send(request("wait=30"), "");
    let working = async {
        let mut task = None;
        crate::bench::until(async || {
            let list = bench.get("/v1/tasks?kind=delete").await.json();
            task = list["tasks"].get(0).map(task_id);
            task.is_some()
        })
        .await;
        bench.remove(task.expect("a task")).await;
    };
    let (answer, ()) = tokio::join!(waiting, working);
    assert_eq!(answer.header("preference-applied"), "wait=30");
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (202, &json!("succeeded")));
}

#[tokio::test]
async fn a_node_that_knows_of_a_deletion_says_so_without_a_database() {
    let fault = Arc::new(AtomicU8::new(Fault::None as u8));
    let handle = fault.clone();
    let bench = Bench::with(HASTY, ApiOptions::default(), |inner| {
        Arc::new(FaultyStore { inner, plan: Flaky(handle) })
    })
    .await;
    let (_, image) = stored(&bench).await;
    let path = format!("/images/{image}");
    assert_eq!(bench.get(&path).await.status.as_u16(), 200);
    deleted(&bench, image).await;
    fault.store(Fault::Away as u8, Ordering::SeqCst);
    bench.get(&path).await.assert_problem(410, "image_deleted");
}

/// Holds the answer of one call of a method back.
struct Late(&'static str, Arc<Barrier>);

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

    /// Begins a request, and waits until it is held up.
    async fn hold_up(&self, bench: &Bench, request: Builder) -> Asking {
        self.armed.store(true, Ordering::SeqCst);
        let (api, request) = (bench.api.clone(), request.body(Body::empty()));
        let asking = tokio::spawn(async move { api.answer(request.expect("a request")).await });
        self.reached.acquire().await.expect("never closed").forget();
        asking
    }
}

type Asking = JoinHandle<Result<Response, Infallible>>;

#[async_trait]
impl FaultPlan for Late {
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
async fn a_look_up_from_before_brings_nothing_back() {
    let late = Barrier::new();
    let gate = Late("image", late.clone());
    let keys = [("SAFELIGHT_METADATA_CACHE_MS", "60000")];
    let bench = Bench::with(&keys, ApiOptions::default(), |inner| {
        Arc::new(FaultyStore { inner, plan: gate })
    })
    .await;
    let (_, image) = stored(&bench).await;
    let path = format!("/images/{image}");
    let asking = late.hold_up(&bench, Request::get(&path)).await;
    deleted(&bench, image).await;
    late.released.add_permits(1);
    let answer = asking.await.expect("no panic").expect("an answer");
    assert_eq!(answer.status().as_u16(), 410, "it was answered after the deletion");
    bench.get(&path).await.assert_problem(410, "image_deleted");
}

#[tokio::test]
async fn who_hangs_up_keeps_no_node_from_forgetting_the_image() {
    let late = Barrier::new();
    let gate = Late("delete_image", late.clone());
    let keys = [("SAFELIGHT_METADATA_CACHE_MS", "60000")];
    let bench = Bench::with(&keys, ApiOptions::default(), |inner| {
        Arc::new(FaultyStore { inner, plan: gate })
    })
    .await;
    let (_, image) = stored(&bench).await;
    let path = format!("/images/{image}");
    assert_eq!(bench.get(&path).await.status.as_u16(), 200);
    let asking = late.hold_up(&bench, Request::delete(format!("/v1/images/{image}"))).await;
    asking.abort();
    assert!(asking.await.is_err_and(|error| error.is_cancelled()));
    late.released.add_permits(1);
    crate::bench::until(async || bench.get(&path).await.status.as_u16() == 410).await;
}

#[tokio::test]
async fn a_node_that_learns_of_a_deletion_drops_the_bytes() {
    let bench = Bench::configured(HASTY).await;
    let metrics = Arc::new(String::new);
    let other = Api::new(bench.services.clone(), metrics, ApiOptions::default());
    // Of one owner, so that the bytes of both are one object to a cache.
    let (_, image) = stored(&bench).await;
    let (_, equal) = stored(&bench).await;
    for what in ["", "/small"] {
        let read = async |api: &Api, image: ImageId| {
            let request = Request::get(format!("/images/{image}{what}")).body(Body::empty());
            let answer = api.answer(request.expect("a request")).await.expect("an answer");
            answer.headers().get("cache-status").map(|how| how.to_str().expect("text").to_owned())
        };
        for api in [&bench.api, &other] {
            read(api, image).await;
            let how = read(api, equal).await;
            assert_eq!(how.as_deref(), Some("safelight; hit; detail=memory"));
        }
        if what.is_empty() {
            continue;
        }
        deleted(&bench, image).await;
        for api in [&bench.api, &other] {
            assert_eq!(read(api, image).await, None, "it is gone");
            let how = read(api, equal).await;
            assert_eq!(how.as_deref(), Some("safelight; fwd=uri-miss; stored; detail=store"));
        }
    }
}
