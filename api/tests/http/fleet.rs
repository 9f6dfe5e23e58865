//! Workers and queues.

use std::time::Duration;

use axum::http::StatusCode;
use safelight_domain::{ErrorCode, Failure, JobKind, Lane, WorkerId};
use safelight_store::{Heartbeat, Outcome, QueueSlots, ServiceRun};
use serde_json::{Value, json};

use crate::app::{TestApp, eventually, fake_png, task_id};

fn heartbeat(id: WorkerId, ended: u64) -> Heartbeat {
    Heartbeat {
        id,
        host: "alder".to_owned(),
        pid: 4711,
        version: "0.2.0".to_owned(),
        draining: false,
        kinds: vec!["write".to_owned(), "dream".to_owned()],
        lanes: vec!["interactive".to_owned()],
        concurrency: 3,
        slots: vec![QueueSlots {
            kind: "write".to_owned(),
            lane: "interactive".to_owned(),
            slots: 12,
            busy: 1,
            ended,
            run_ms: 99,
        }],
        services: vec![ServiceRun {
            name: "outbox_relay".to_owned(),
            last_run_at: None,
            last_success_at: None,
            last_error: Some("the broker is not connected".to_owned()),
        }],
        period: Duration::from_mins(1),
        uptime: Duration::ZERO,
    }
}

async fn write_queue(app: &TestApp) -> Value {
    let answer = app.get("/v1/queues").await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    let queues = answer.json()["queues"].as_array().expect("a list").clone();
    assert_eq!(queues.len(), JobKind::ALL.len() * Lane::ALL.len(), "each kind on each lane");
    let wanted = |one: &Value| one["kind"] == "write" && one["lane"] == "interactive";
    queues.into_iter().find(wanted).expect("the queue")
}

#[tokio::test]
async fn workers_show_their_last_heartbeat() {
    let app = TestApp::new().await;
    assert_eq!(app.get("/v1/workers").await.json(), json!({ "workers": [] }));
    let id = WorkerId::new();
    let store = &app.parts.store;
    store.heartbeat(&heartbeat(id, 7)).await.expect("registered");
    let worker = app.get("/v1/workers").await.json()["workers"][0].clone();
    assert!(worker["started_at"].is_string() && worker["last_heartbeat_at"].is_string());
    let mut known = worker;
    for time in ["started_at", "last_heartbeat_at"] {
        known.as_object_mut().expect("an object").remove(time);
    }
    let expected = json!({
        "id": id, "host": "alder", "pid": 4711, "version": "0.2.0", "status": "running",
        "kinds": ["write", "dream"], "lanes": ["interactive"], "concurrency": 3,
        "slots": [{
            "kind": "write", "lane": "interactive", "slots": 12, "busy": 1, "ended": 7,
            "run_ms": 99,
        }],
        "services": [{
            "name": "outbox_relay", "last_run_at": null, "last_success_at": null,
            "last_error": "the broker is not connected",
        }],
    });
    assert_eq!(known, expected);
    let draining = Heartbeat { draining: true, ..heartbeat(id, 7) };
    store.heartbeat(&draining).await.expect("registered");
    assert_eq!(app.get("/v1/workers").await.json()["workers"][0]["status"], "draining");
    // A worker is lost after three periods. Three periods of zero end immediately.
    let silent = Heartbeat { period: Duration::ZERO, ..heartbeat(WorkerId::new(), 0) };
    store.heartbeat(&silent).await.expect("registered");
    assert_eq!(app.get("/v1/workers").await.json()["workers"][0]["status"], "lost");
    app.get("/v1/workers?limit=1").await.assert_problem(400, "invalid_query");
}

#[tokio::test]
async fn queues_report_depths_and_rates() {
    let app = TestApp::configured(&[("SAFELIGHT_HEARTBEAT_MS", "50")]).await;
    let empty = write_queue(&app).await;
    let expected = json!({
        "kind": "write", "lane": "interactive", "depth": 0, "due": 0, "running": 0, "failed": 0,
        "oldest_due_seconds": 0.0, "rate_in": null, "rate_out": null, "seconds_to_empty": 0.0,
    });
    assert_eq!(empty, expected);

    let mut tasks = Vec::new();
    for seed in 0..3 {
        tasks.push(task_id(&app.upload(fake_png(64, seed)).await));
    }
    let (running, _) = app.claim(tasks[0], JobKind::Write).await;
    let (lease, _) = app.claim(tasks[1], JobKind::Write).await;
    let unavailable = Failure::new(ErrorCode::StoreUnavailable, "unavailable");
    app.settle(lease, Outcome::Retry(unavailable.clone(), Duration::from_hours(1))).await;
    eventually(async || {
        let queue = write_queue(&app).await;
        let counts = ["depth", "due", "running", "failed"].map(|key| queue[key].as_u64());
        counts == [Some(2), Some(1), Some(1), Some(0)]
    })
    .await;

    // A worker that reports finished jobs.
    let worker = WorkerId::new();
    app.parts.store.heartbeat(&heartbeat(worker, 0)).await.expect("registered");
    eventually(async || write_queue(&app).await["rate_out"].is_number()).await;
    app.settle(running, Outcome::Failed(unavailable)).await;
    app.parts.store.heartbeat(&heartbeat(worker, 1)).await.expect("registered");
    eventually(async || write_queue(&app).await["rate_out"].as_f64() > Some(0.0)).await;
    let queue = write_queue(&app).await;
    assert_eq!((queue["failed"].as_u64(), queue["running"].as_u64()), (Some(1), Some(0)));
    assert!(queue["rate_in"].is_number() && queue["oldest_due_seconds"].is_number(), "{queue}");
    app.get("/v1/queues?kind=write").await.assert_problem(400, "invalid_query");
}
