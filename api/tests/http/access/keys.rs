//! Keys: created, listed, used and revoked; loopback access; responses that outlive their key.

use std::time::Duration;

use axum::{
    body::Body,
    http::{Request, request::Builder},
};
use chrono::Utc;
use safelight_domain::{Owner, new_id};
use serde_json::{Value, json};

use super::{
    Key,
    requests::{counting_calls, ended, start_request},
};
use crate::app::{TestApp, eventually, fake_png, task_id};

#[tokio::test]
async fn keys_are_created_used_listed_and_revoked() {
    let app = TestApp::new().await;
    let admin = app.key("ops", "admin").await;
    let make = |body: Value| {
        let request = admin.on(Request::post("/v1/keys"));
        app.send(request.header("content-type", "application/json"), body.to_string())
    };
    let reply = make(json!({ "owner": "ada", "scopes": ["read"], "expires_in": 60 })).await;
    assert_eq!(reply.status.as_u16(), 201, "{}", reply.text());
    assert_eq!(reply.header("cache-control"), "no-store");
    let key = reply.json();
    let secret = key["secret"].as_str().expect("a secret");
    assert!(secret.starts_with(key["prefix"].as_str().expect("a prefix")));
    let hers = Key {
        id: key["id"].as_str().expect("an id").parse().expect("a UUID"),
        bearer: format!("bearer {secret}"),
    };
    assert_eq!(hers.get(&app, "/v1/images").await.status.as_u16(), 200);
    let list = admin.get(&app, "/v1/keys?owner=ada").await;
    assert!(!list.text().contains(&secret[14..]), "the secret is not listed");
    assert_eq!(list.json()["keys"][0]["scopes"], json!(["read"]));

    let revoke = admin.on(Request::delete(format!("/v1/keys/{}", hers.id)));
    assert_eq!(app.send(revoke, Body::empty()).await.status.as_u16(), 200);
    hers.get(&app, "/v1/images").await.assert_problem(401, "invalid_key");
    let unknown = admin.on(Request::delete(format!("/v1/keys/{}", new_id())));
    app.send(unknown, Body::empty()).await.assert_problem(404, "key_not_found");
    for bad in [
        json!({ "owner": "a b", "scopes": ["read"] }),
        json!({ "owner": "ada", "scopes": [] }),
        json!({ "owner": "ada", "scopes": ["all"] }),
        json!({ "owner": "ada", "scopes": ["read"], "expires_in": 0 }),
        json!({ "owner": "ada", "scopes": ["read"], "expires_in": 3_155_760_001_u64 }),
        json!({ "owner": "ada", "scopes": ["read"], "expires_in": u64::MAX }),
        json!({ "owner": "ada" }),
    ] {
        make(bad).await.assert_problem(400, "invalid_body");
    }
}

#[tokio::test]
async fn without_keys_only_loopback_requests_are_allowed() {
    let app = TestApp::new().await;
    let list = || Request::get("/v1/images");
    let status = async |request: Builder| app.send(request, Body::empty()).await.status.as_u16();
    assert_eq!(status(list().header("host", "127.0.0.1:8080")).await, 200);
    assert_eq!(status(list().header("host", "photos.example")).await, 401);
    assert_eq!(status(list().header("x-forwarded-for", "127.0.0.1")).await, 401);
    assert_eq!(status(list().header("authorization", "Bearer nonsense")).await, 401);
    app.key("ada", "read").await;
    eventually(async || status(list()).await == 401).await;

    let elsewhere = TestApp::configured(&[("SAFELIGHT_LISTEN", "0.0.0.0:8080")]).await;
    elsewhere.get("/v1/images").await.assert_problem(401, "key_missing");
}

#[tokio::test]
async fn key_use_is_recorded() {
    let app = TestApp::new().await;
    let ada = app.key("ada", "read").await;
    ada.get(&app, "/v1/images").await;
    let owner: Owner = "ada".parse().expect("an owner");
    let page = safelight_store::PageRequest { before: None, limit: 1 };
    eventually(async || {
        let keys = app.parts.store.list_api_keys(Some(&owner), &page).await.expect("keys");
        keys[0].last_used_at.is_some_and(|at| {
            (Utc::now() - at).to_std().is_ok_and(|ago| ago < Duration::from_mins(1))
        })
    })
    .await;
}

#[tokio::test]
async fn held_and_streamed_responses_end_with_their_key() {
    let (app, lookups) = counting_calls("api_keys").await;
    let ada = app.key("ada", "upload,read").await;
    let task = task_id(&ada.upload(&app, "").await);
    let (events, path) = (format!("/v1/tasks/{task}/events"), format!("/v1/tasks/{task}"));
    let waits = |key: &Key, path: &str| {
        start_request(&app, key.on(Request::get(path)).header("prefer", "wait=60"))
    };
    let revoked = app.key("ada", "read").await;
    let expiring = app.key_for("ada", "read", Some(Duration::from_secs(3))).await;
    let before = lookups();
    let streams = [&revoked, &expiring].map(|key| waits(key, &events));
    let held = [&revoked, &expiring].map(|key| waits(key, &path));
    let (others_stream, others_wait) = (waits(&ada, &events), waits(&ada, &path));
    eventually(async || lookups() >= before + 6).await;
    app.parts.store.revoke_api_key(revoked.id).await.expect("revoked");
    for stream in streams {
        let text = ended(stream).await.text();
        assert_eq!(text.matches("event: task").count(), 1, "{text}");
    }
    for held in held {
        ended(held).await.assert_problem(401, "invalid_key");
    }
    app.write(task).await;
    app.render(task, b"x").await;
    assert!(ended(others_stream).await.text().contains("\"succeeded\""), "its key is still valid");
    assert_eq!(ended(others_wait).await.json()["status"], "succeeded");
}

#[tokio::test]
async fn first_key_ends_responses_held_without_one() {
    let (app, loaded) = counting_calls("task").await;
    let task = task_id(&app.upload(fake_png(500, 1)).await);
    let path = format!("/v1/tasks/{task}");
    let stream = start_request(&app, Request::get(format!("{path}/events")));
    let held = start_request(&app, Request::get(&path).header("prefer", "wait=60"));
    eventually(async || loaded() == 2).await;
    app.key("ada", "read").await;
    ended(stream).await;
    ended(held).await.assert_problem(401, "key_missing");
}
