//! One owner who takes as much of a node as it can: another one's requests still work, and so do anybody's images.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    http::Request,
};
use futures::stream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};

use crate::{
    access::{
        Key,
        requests::{ended, start_request},
    },
    app::{TestApp, TestResponse, addressed, eventually, fake_png, image_id, task_id},
    server::{ConnectedApp, Http2, read_answer},
};

/// JSON bodies that a node receives at once, and one owner's share.
const BODIES: usize = 256;
const SHARE: usize = 64;

fn sign(key: &Key, image: &str) -> axum::http::request::Builder {
    let request = Request::post(format!("{image}/signed-url"));
    key.on(request).header("content-type", "application/json")
}

#[tokio::test]
async fn json_documents_are_small() {
    let app = TestApp::new().await;
    let ada = app.key("ada", "upload,read,admin").await;
    let image = format!("/v1/images/{}", image_id(&ada.upload(&app, "").await));
    let padded = |bytes: usize| format!("{{\"expires_in\": 60{}}}", " ".repeat(bytes - 18));
    let answer = app.send(sign(&ada, &image), padded(64 << 10)).await;
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    for path in [format!("{image}/signed-url"), "/v1/keys".to_owned(), "/v1/backfills".to_owned()] {
        for bytes in [(64 << 10) + 1, (2 << 20) - 1] {
            let request = ada.on(Request::post(&path)).header("content-type", "application/json");
            let problem =
                app.send(request, padded(bytes)).await.assert_problem(413, "body_too_large");
            assert_eq!(problem["limit_bytes"], 64 << 10);
        }
    }
}

#[tokio::test]
async fn one_owner_sends_only_its_share_of_the_json_documents() {
    let app = TestApp::new().await;
    let (ada, bob) = (app.key("ada", "upload,read").await, app.key("bob", "upload,read").await);
    let image = format!("/v1/images/{}", image_id(&ada.upload(&app, "").await));
    let of_bob = format!("/v1/images/{}", image_id(&bob.upload(&app, "").await));
    let slow: Vec<JoinHandle<()>> = (0..BODIES)
        .map(|_| {
            let never = stream::pending::<Result<Bytes, std::io::Error>>();
            let request = sign(&ada, &image).body(Body::from_stream(never)).expect("a request");
            let api = app.api.clone();
            tokio::spawn(async move {
                let response = api.answer(addressed(request)).await.expect("a response");
                assert_eq!(response.status().as_u16(), 429);
            })
        })
        .collect();
    let refused = || slow.iter().filter(|one| one.is_finished()).count();
    eventually(async || refused() == BODIES - SHARE).await;
    let rejected = app.send(sign(&ada, &image), "{\"expires_in\": 60}").await;
    rejected.assert_problem(429, "too_many_own_requests");
    let answer = app.send(sign(&bob, &of_bob), "{\"expires_in\": 60}").await;
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    slow.iter().for_each(JoinHandle::abort);
    eventually(async || {
        app.send(sign(&ada, &image), "{\"expires_in\": 60}").await.status.as_u16() == 200
    })
    .await;
}

#[tokio::test]
async fn one_owner_waits_only_in_its_share() {
    let keys = [("SAFELIGHT_MAX_WAITING", "12"), ("SAFELIGHT_MAX_WAITING_PER_OWNER", "4")];
    let app = TestApp::configured(&keys).await;
    let (ada, bob) = (app.key("ada", "upload,read").await, app.key("bob", "upload,read").await);
    let (task, of_bob) = (ada.upload(&app, "").await, bob.upload(&app, "").await);
    let waits = |key: &Key, task: &serde_json::Value, path: &str| {
        let path = format!("/v1/tasks/{}{path}", task_id(task));
        start_request(&app, key.on(Request::get(path)).header("prefer", "wait=60"))
    };
    let reads = |task: &serde_json::Value, preset: &str| {
        start_request(&app, Request::get(format!("/images/{}{preset}?wait=60", image_id(task))))
    };
    let refused =
        |all: &[JoinHandle<TestResponse>]| all.iter().filter(|one| one.is_finished()).count();
    // Long polls and streams of hers, and requests of anybody for one image of hers, of which it has half.
    let hers: Vec<_> =
        (0..4).flat_map(|_| [waits(&ada, &task, ""), waits(&ada, &task, "/events")]).collect();
    let of_her_image: Vec<_> = (0..6).map(|_| reads(&task, "")).collect();
    eventually(async || refused(&hers) == 4 && refused(&of_her_image) == 4).await;
    // Bob's long poll, his stream, and an image of his wait, and end when there is something.
    let others =
        [waits(&bob, &of_bob, ""), waits(&bob, &of_bob, "/events"), reads(&of_bob, "/small")];
    app.write(task_id(&of_bob)).await;
    app.render(task_id(&of_bob), b"x").await;
    for other in others {
        let answer = ended(other).await;
        assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    }
    let mut too_many = 0;
    for waiting in hers.into_iter().chain(of_her_image) {
        if waiting.is_finished() {
            ended(waiting).await.assert_problem(503, "too_many_waiting");
            too_many += 1;
        } else {
            waiting.abort();
        }
    }
    assert_eq!(too_many, 8);
}

#[tokio::test]
async fn connections_with_many_unread_responses_leave_every_other_one_a_request() {
    let keys = [("SAFELIGHT_MAX_WAITING", "1"), ("SAFELIGHT_MAX_CONNECTIONS", "4")];
    let server = ConnectedApp::new(&keys).await;
    let document = server.app.upload(fake_png(50_000, 1)).await;
    server.app.write(task_id(&document)).await;
    let path = format!("/images/{}", image_id(&document));
    // Of this client 1 request needs no permit, and its address has 2 of the 3 permits for further ones.
    let mut greedy = Http2::new(&server, 0).await;
    let mut unread = Vec::new();
    for status in [200, 200, 200, 503, 503] {
        let response = greedy.get(&path, "").await.expect("a response");
        assert_eq!(response.status().as_u16(), status);
        unread.push(response);
    }
    for _ in 0..3 {
        let mut other = Http2::new(&server, 65_535).await;
        assert_eq!(other.get(&path, "").await.expect("a response").status().as_u16(), 200);
    }
}

#[tokio::test]
async fn unfinished_heads_give_way_to_others() {
    let server = ConnectedApp::new(&[("SAFELIGHT_MAX_CONNECTIONS", "256")]).await;
    // A head on a connection that has had a request before counts too.
    let mut oldest = server.connect().await;
    let whole = "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    oldest.write_all(whole.as_bytes()).await.expect("sent");
    assert!(read_answer(&mut oldest).await.starts_with("HTTP/1.1 200"));
    let mut unfinished = vec![oldest];
    // A quarter of the connections, and one more.
    for _ in 0..256 / 4 {
        unfinished.push(server.connect().await);
    }
    for stream in &mut unfinished {
        for part in ["GET /livez HTTP/1.1\r\nHost: ", "localhost\r\nX-Padding: "] {
            stream.write_all(part.as_bytes()).await.expect("sent");
            tokio::task::yield_now().await;
        }
    }
    let mut first = unfinished.swap_remove(0);
    let closed = tokio::time::timeout(Duration::from_secs(20), first.read(&mut [0; 1])).await;
    assert!(closed.expect("in time").map_or(true, |count| count == 0), "the oldest");
    let mut last = unfinished.pop().expect("many");
    last.write_all(b"x\r\n\r\n").await.expect("sent");
    assert!(read_answer(&mut last).await.starts_with("HTTP/1.1 200"), "all others can go on");
}
