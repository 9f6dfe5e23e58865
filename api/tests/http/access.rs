//! Access control: every route, with every scope, on own, foreign and unknown objects.

use std::{
    convert::Infallible,
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    body::{Body, Bytes},
    http::{Request, request::Builder},
};
use chrono::{DateTime, TimeDelta, Utc};
use futures::stream;
use safelight_api::ApiOptions;
use safelight_domain::{Owner, Scope, Scopes, secrets::ApiSecret};
use safelight_store::{
    NewApiKey, StoreError,
    testing::{Call, FaultPlan, FaultyStore},
};
use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinHandle};
use uuid::Uuid;

use crate::app::{TestApp, TestResponse, fake_png, image_id, task_id};

impl TestApp {
    /// Creates a key.
    pub async fn key(&self, owner: &str, scopes: &str) -> Key {
        self.key_for(owner, scopes, None).await
    }

    /// Creates a key with a lifetime.
    async fn key_for(&self, owner: &str, scopes: &str, lifetime: Option<Duration>) -> Key {
        let secret = ApiSecret::new().expect("random bytes");
        let id = Uuid::now_v7();
        let new = NewApiKey {
            id,
            prefix: secret.prefix().to_owned(),
            owner: owner.parse().expect("an owner"),
            scopes: scopes.parse().expect("scopes"),
            secret_sha256: secret.hash(),
            lifetime,
        };
        self.parts.store.create_api_key(&new).await.expect("a key");
        Key { id, bearer: format!("Bearer {}", secret.reveal()) }
    }
}

/// An API key.
pub struct Key {
    id: Uuid,
    bearer: String,
}

impl Key {
    fn on(&self, request: Builder) -> Builder {
        request.header("authorization", &self.bearer)
    }

    async fn get(&self, app: &TestApp, path: &str) -> TestResponse {
        app.send(self.on(Request::get(path)), Body::empty()).await
    }

    /// Uploads an image with query parameters.
    pub async fn upload(&self, app: &TestApp, query: &str) -> Value {
        let request = Request::post(format!("/v1/images{query}"));
        let answer = app.send(self.on(request), fake_png(100, 1)).await;
        assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
        answer.json()
    }
}

/// The scopes that each route requires, written by hand from the documentation.
const ROUTES: &[(&str, &str, &[Scope])] = &[
    ("GET", "/livez", &[]),
    ("GET", "/readyz", &[]),
    ("GET", "/metrics", &[Scope::Metrics]),
    ("GET", "/images/{image}", &[]),
    ("GET", "/images/{image}/{preset}", &[]),
    ("POST", "/v1/images", &[Scope::Upload]),
    ("GET", "/v1/images", &[Scope::Read]),
    ("GET", "/v1/images/{image}", &[Scope::Read]),
    ("DELETE", "/v1/images/{image}", &[Scope::Upload]),
    ("POST", "/v1/images/{image}/signed-url", &[Scope::Read]),
    ("GET", "/v1/tasks", &[Scope::Read]),
    ("GET", "/v1/tasks/{task}", &[Scope::Read]),
    ("GET", "/v1/tasks/{task}/events", &[Scope::Read]),
    ("POST", "/v1/tasks/{task}/cancel", &[Scope::Upload]),
    ("POST", "/v1/tasks/{task}/retry", &[Scope::Upload]),
    ("POST", "/v1/tasks/retry", &[Scope::Upload, Scope::Read]),
    ("GET", "/v1/limits", &[Scope::Read]),
    ("POST", "/v1/backfills", &[Scope::Admin]),
    ("POST", "/v1/tasks/{task}/pause", &[Scope::Admin]),
    ("POST", "/v1/tasks/{task}/resume", &[Scope::Admin]),
    ("GET", "/v1/tasks/{task}/report", &[Scope::Admin]),
    ("GET", "/v1/workers", &[Scope::Admin]),
    ("GET", "/v1/queues", &[Scope::Admin]),
    ("GET", "/v1/keys", &[Scope::Admin]),
    ("POST", "/v1/keys", &[Scope::Admin]),
    ("DELETE", "/v1/keys/{key}", &[Scope::Admin]),
    ("GET", "/v1/audit", &[Scope::Admin]),
];

/// A request to a route for the image and task of an upload.
fn request(method: &str, route: &str, upload: &Value) -> Builder {
    let path = route
        .replace("{image}", &image_id(upload).to_string())
        .replace("{task}", &task_id(upload).to_string())
        .replace("{preset}", "small?wait=0")
        .replace("{key}", &Uuid::now_v7().to_string());
    assert!(!path.contains(['{', '}']), "no value for a parameter of {path}");
    Request::builder().method(method).uri(path).header("content-type", "application/json")
}

#[test]
fn every_route_has_a_test_case() {
    let document = json!(safelight_api::openapi());
    let mut described = Vec::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in item.as_object().expect("methods").keys() {
            described.push((method.to_uppercase(), path.clone()));
        }
    }
    let known = |method: &str, route: &str| {
        let id = |name: &str| route.replace(&format!("{{{name}}}"), "{id}");
        let spellings = [id("image"), id("task"), id("key")];
        described.iter().any(|(m, p)| m == method && spellings.contains(p))
    };
    for (method, route, _) in ROUTES {
        assert!(known(method, route), "{method} {route} is not described");
    }
    assert_eq!(described.len(), ROUTES.len(), "{described:?}");
}

#[tokio::test]
async fn every_route_requires_its_scope() {
    let app = TestApp::new().await;
    let both = app.key("ada", "upload,read").await;
    for (method, route, needed) in ROUTES {
        let upload = both.upload(&app, "").await;
        let send = async |key: Option<&Key>| {
            let request = request(method, route, &upload);
            let request = match key {
                Some(key) => key.on(request),
                None => request,
            };
            app.send(request, Body::empty()).await
        };
        if needed.is_empty() {
            let answer = send(None).await;
            assert!(!matches!(answer.status.as_u16(), 401 | 403), "{method} {route}");
            continue;
        }
        let answer = send(None).await;
        answer.assert_problem(401, "key_missing");
        assert!(answer.header("www-authenticate").starts_with("Bearer"), "{method} {route}");
        for scopes in ["upload", "read", "admin", "metrics", "upload,read"] {
            let key = app.key("ada", scopes).await;
            let given: Scopes = scopes.parse().expect("scopes");
            let allowed = needed.iter().all(|scope| given.allow(*scope));
            // An event stream does not end before its task.
            if route.ends_with("/events") && allowed {
                continue;
            }
            let answer = send(Some(&key)).await;
            if allowed {
                let rejected = matches!(answer.status.as_u16(), 401 | 403);
                assert!(!rejected, "{method} {route} with {scopes}: {}", answer.text());
            } else {
                answer.assert_problem(403, "scope_missing");
            }
        }
    }
}

#[tokio::test]
async fn objects_of_other_owners_answer_404() {
    let app = TestApp::new().await;
    let ada = app.key("ada", "upload,read").await;
    let bob = app.key("bob", "upload,read,admin").await;
    for (method, route, _) in ROUTES {
        if !route.contains("{image}") && !route.contains("{task}") || !route.starts_with("/v1/") {
            continue;
        }
        let upload = ada.upload(&app, "").await;
        let unknown = json!({ "id": Uuid::now_v7(), "image": { "id": Uuid::now_v7() } });
        let mut answers = Vec::new();
        for object in [&upload, &unknown] {
            let request = bob.on(request(method, route, object));
            let answer = app.send(request, "{}").await;
            assert_eq!(answer.status.as_u16(), 404, "{method} {route}: {}", answer.text());
            // Apart from the ids both responses are equal.
            let text = answer.text();
            let text = text.replace(&image_id(object).to_string(), "");
            answers.push(text.replace(&task_id(object).to_string(), ""));
        }
        assert_eq!(answers[0], answers[1], "{method} {route}");
        let status = ada.get(&app, &format!("/v1/tasks/{}", task_id(&upload))).await.json();
        assert_eq!(status["status"], "queued", "{method} {route} has changed it");
    }
    let images = bob.get(&app, "/v1/images").await.json();
    assert_eq!(images["images"], json!([]));
    let tasks = bob.get(&app, "/v1/tasks").await.json();
    assert_eq!(tasks["tasks"], json!([]));
    bob.get(&app, "/v1/tasks?owner=ada").await.assert_problem(403, "scope_missing");
    // Ada's cursor is a position in Bob's list, which is empty.
    let page = ada.get(&app, "/v1/images?limit=1").await.json();
    let cursor = page["next_cursor"].as_str().expect("a cursor");
    let next = bob.get(&app, &format!("/v1/images?cursor={cursor}")).await.json();
    assert_eq!(next, json!({ "images": [], "next_cursor": null }));
    // Retrying all failed tasks finds none of Ada's.
    let retry = bob.on(Request::post("/v1/tasks/retry?all=true&dry_run=true"));
    assert_eq!(app.send(retry, Body::empty()).await.json()["tasks"], json!([]));
}

#[tokio::test]
async fn idempotency_keys_are_separate_per_owner() {
    let app = TestApp::new().await;
    let keys = [app.key("ada", "upload").await, app.key("bob", "upload").await];
    let mut tasks = Vec::new();
    for key in [&keys[0], &keys[1], &keys[0]] {
        let request = key.on(Request::post("/v1/images")).header("idempotency-key", "same");
        let answer = app.send(request, fake_png(100, 1)).await;
        assert_eq!(answer.status.as_u16(), 202, "{}", answer.text());
        tasks.push(answer.json()["id"].clone());
    }
    assert_ne!(tasks[0], tasks[1]);
    assert_eq!(tasks[0], tasks[2]);
}

#[tokio::test]
async fn admin_must_name_the_owner_it_acts_for() {
    let app = TestApp::new().await;
    let ada = app.key("ada", "upload,read").await;
    let admin = app.key("ops", "upload,read,admin").await;
    let upload = ada.upload(&app, "").await;
    let path = format!("/v1/tasks/{}", task_id(&upload));
    admin.get(&app, &path).await.assert_problem(404, "task_not_found");
    for owner in ["ada", "*"] {
        let request = admin.on(Request::get(&path)).header("safelight-owner", owner);
        assert_eq!(app.send(request, Body::empty()).await.status.as_u16(), 200);
    }
    let request = ada.on(Request::get(&path)).header("safelight-owner", "ada");
    app.send(request, Body::empty()).await.assert_problem(403, "scope_missing");
    let request = admin.on(Request::get(&path)).header("safelight-owner", "a/b");
    app.send(request, Body::empty()).await.assert_problem(400, "invalid_header");

    let cancel = Request::post(format!("{path}/cancel"));
    let request = admin.on(cancel).header("safelight-owner", "ada");
    assert_eq!(app.send(request, Body::empty()).await.status.as_u16(), 202);
    let log = admin.get(&app, "/v1/audit").await.json();
    assert_eq!(log["entries"].as_array().expect("entries").len(), 1, "reads are not logged: {log}");
    assert_eq!(log["entries"][0]["target"], format!("{path}/cancel"));
    assert_eq!(log["entries"][0]["owner"], "ada");
}

#[tokio::test]
async fn audit_log_names_the_kind_of_a_backfill() {
    let app = TestApp::new().await;
    let admin = app.key("ops", "admin").await;
    for (kind, dry_run) in [("renditions", false), ("verify", false), ("gc", true)] {
        let body = json!({ "kind": kind, "dry_run": dry_run }).to_string();
        let request = admin.on(Request::post("/v1/backfills"));
        let created = app.send(request.header("content-type", "application/json"), body).await;
        let at = created.header("location");
        let log = admin.get(&app, "/v1/audit?limit=1").await.json();
        let how = if dry_run { ", dry run" } else { "" };
        assert_eq!(log["entries"][0]["target"], format!("/v1/backfills ({kind}{how}) -> {at}"));
    }
}

#[tokio::test]
async fn import_gets_its_owners_quota_and_visibility() {
    let owners = ("SAFELIGHT_OWNERS", "{ ada = { quota_images = 7 } }");
    let app = TestApp::configured(&[owners, ("SAFELIGHT_DEFAULT_VISIBILITY", "private")]).await;
    let admin = app.key("ops", "admin,read").await;
    for (requested, expected) in [(None, "private"), (Some("public"), "public")] {
        let body = json!({ "kind": "import", "source": "/tmp", "visibility": requested });
        let request = admin.on(Request::post("/v1/backfills")).header("safelight-owner", "ada");
        let request = request.header("content-type", "application/json");
        let created = app.send(request, body.to_string()).await;
        assert_eq!(created.status.as_u16(), 202, "{}", created.text());
        assert_eq!(created.json()["backfill"]["request"]["visibility"], expected);
        let task = app.parts.store.task(task_id(&created.json())).await.expect("read");
        let spec = task.and_then(|task| task.backfill).expect("a backfill").spec;
        assert_eq!((spec.quota.images, spec.quota.bytes), (Some(7), None));
    }
}

#[tokio::test]
async fn behind_a_proxy_imports_are_limited_to_import_roots() {
    let keys = [("SAFELIGHT_LISTEN", "127.0.0.1:0"), ("SAFELIGHT_BEHIND_TLS", "true")];
    let app = TestApp::configured(&keys).await;
    let admin = app.key("ops", "admin").await;
    let request = admin.on(Request::post("/v1/backfills"));
    let body = json!({ "kind": "import", "source": "/tmp" }).to_string();
    let rejected = app.send(request.header("content-type", "application/json"), body).await;
    rejected.assert_problem(403, "source_forbidden");
}

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
    let unknown = admin.on(Request::delete(format!("/v1/keys/{}", Uuid::now_v7())));
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
    crate::app::eventually(async || status(list()).await == 401).await;

    let elsewhere = TestApp::configured(&[("SAFELIGHT_LISTEN", "0.0.0.0:8080")]).await;
    elsewhere.get("/v1/images").await.assert_problem(401, "key_missing");
}

#[tokio::test]
async fn private_image_requires_its_owners_key_or_a_signature() {
    let app = TestApp::new().await;
    let ada = app.key("ada", "upload,read").await;
    let uploads_only = app.key("ada", "upload").await;
    let bob = app.key("bob", "upload,read,admin").await;
    let upload = ada.upload(&app, "?visibility=private").await;
    assert_eq!(upload["image"]["visibility"], "private");
    let id = image_id(&upload);
    app.write(task_id(&upload)).await;
    app.render(task_id(&upload), b"rendered").await;

    for path in [format!("/images/{id}"), format!("/images/{id}/small")] {
        // The second request is served from memory.
        for _ in 0..2 {
            let answer = ada.get(&app, &path).await;
            assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
            assert_eq!(answer.header("cache-control"), "private, no-cache");
            app.get(&path).await.assert_problem(401, "key_missing");
            uploads_only.get(&app, &path).await.assert_problem(403, "scope_missing");
            bob.get(&app, &path).await.assert_problem(404, "image_not_found");
        }
    }

    let sign = async |key: &Key, body: Value| {
        let request = key.on(Request::post(format!("/v1/images/{id}/signed-url")));
        app.send(request.header("content-type", "application/json"), body.to_string()).await
    };
    let signed = sign(&ada, json!({ "preset": "small", "expires_in": 60 })).await;
    assert_eq!(signed.status.as_u16(), 200, "{}", signed.text());
    let signed = signed.json();
    let url = signed["url"].as_str().expect("a URL");
    let answer = app.get(url).await;
    assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (200, &b"rendered"[..]));
    assert_eq!(answer.header("cache-control"), "private, no-cache");
    for other in [
        url.replace("/small", "/large"),
        url.replace("/small", ""),
        url.replace("expires=", "expires=1"),
        url.replace("key_id=sk_", "key_id=sk_x"),
        format!("{url}x"),
    ] {
        app.get(&other).await.assert_problem(403, "invalid_signature");
    }
    sign(&bob, json!({})).await.assert_problem(404, "image_not_found");
    sign(&ada, json!({ "preset": "huge" })).await.assert_problem(404, "preset_not_found");
    for bad in [0, 31_536_001] {
        sign(&ada, json!({ "expires_in": bad })).await.assert_problem(400, "invalid_body");
    }

    let key = signed["key_id"].as_str().expect("a key");
    app.parts.store.revoke_signing_key(key).await.expect("revoked");
    app.get(url).await.assert_problem(403, "invalid_signature");

    let started = Utc::now();
    let short = sign(&ada, json!({ "expires_in": 1 })).await.json();
    let expires: DateTime<Utc> =
        short["expires_at"].as_str().and_then(|at| at.parse().ok()).expect("a time");
    assert!(started + TimeDelta::seconds(1) <= expires, "{started} {expires}: too short");
    let url = short["url"].as_str().expect("a URL").to_owned();
    crate::app::eventually(async || app.get(&url).await.status.as_u16() == 403).await;
    app.get(&url).await.assert_problem(403, "signature_expired");
}

#[tokio::test]
async fn public_image_requires_no_key_and_is_cacheable() {
    let app = TestApp::new().await;
    let ada = app.key("ada", "upload,read").await;
    let upload = ada.upload(&app, "").await;
    app.write(task_id(&upload)).await;
    let answer = app.get(&format!("/images/{}", image_id(&upload))).await;
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    assert!(answer.header("cache-control").starts_with("public"));
}

#[tokio::test]
async fn full_quota_rejects_uploads_until_an_image_is_cancelled() {
    let app = TestApp::configured(&[("SAFELIGHT_OWNERS", "{ ada = { quota_images = 1 } }")]).await;
    let ada = app.key("ada", "upload,read").await;
    let upload = ada.upload(&app, "").await;
    let again = async || app.send(ada.on(Request::post("/v1/images")), fake_png(9, 2)).await;
    let rejected = again().await.assert_problem(403, "over_quota");
    assert_eq!((&rejected["used_images"], &rejected["quota_images"]), (&json!(1), &json!(1)));
    let limits = ada.get(&app, "/v1/limits").await.json();
    assert_eq!(limits["owner"], "ada");
    assert_eq!(limits["quota"]["used_bytes"], 100);
    let others = app.key("bob", "upload").await;
    others.upload(&app, "").await;

    let cancel = ada.on(Request::post(format!("/v1/tasks/{}/cancel", task_id(&upload))));
    app.send(cancel, Body::empty()).await;
    assert_eq!(again().await.status.as_u16(), 202);
}

#[tokio::test]
async fn rates_are_reported_and_enforced() {
    let keys = [("SAFELIGHT_REQUESTS_PER_MINUTE", "5"), ("SAFELIGHT_UPLOADS_PER_MINUTE", "2")];
    let app = TestApp::configured(&keys).await;
    let ada = app.key("ada", "upload,read").await;
    for left in [1, 0] {
        let request = ada.on(Request::post("/v1/images"));
        let answer = app.send(request, fake_png(100, 1)).await;
        assert_eq!(answer.status.as_u16(), 202);
        let rates: Vec<_> = answer.headers.get_all("ratelimit").iter().collect();
        assert_eq!(rates.len(), 2);
        let uploads = rates[1].to_str().expect("text");
        assert!(uploads.starts_with(&format!("\"uploads\";r={left};t=")), "{uploads}");
    }
    let rejected = app.send(ada.on(Request::post("/v1/images")), fake_png(100, 1)).await;
    assert_eq!(rejected.status.as_u16(), 429, "{}", rejected.text());
    let wait: u64 = rejected.header("retry-after").parse().expect("seconds");
    assert!((29..=30).contains(&wait), "{wait}");
    assert_eq!(rejected.header("ratelimit-policy"), "\"uploads\";q=2;w=60");
    for _ in 0..2 {
        assert_eq!(ada.get(&app, "/v1/images").await.status.as_u16(), 200);
    }
    assert_eq!(ada.get(&app, "/v1/images").await.status.as_u16(), 429);
    let bob = app.key("bob", "read").await;
    assert_eq!(bob.get(&app, "/v1/images").await.status.as_u16(), 200, "limits are per owner");
}

#[tokio::test]
async fn key_use_is_recorded() {
    let app = TestApp::new().await;
    let ada = app.key("ada", "read").await;
    ada.get(&app, "/v1/images").await;
    let owner: Owner = "ada".parse().expect("an owner");
    let page = safelight_store::PageRequest { before: None, limit: 1 };
    crate::app::eventually(async || {
        let keys = app.parts.store.list_api_keys(Some(&owner), &page).await.expect("keys");
        keys[0].last_used_at.is_some_and(|at| {
            (Utc::now() - at).to_std().is_ok_and(|ago| ago < Duration::from_mins(1))
        })
    })
    .await;
}

/// An upload whose body sends nothing until it is released.
struct SlowUpload {
    release: oneshot::Sender<()>,
    answer: JoinHandle<u16>,
}

impl SlowUpload {
    /// Starts the upload, and waits until the server reads its body.
    async fn start(app: &TestApp, request: Builder) -> Self {
        let ((release, released), (reading, is_reading)) = (oneshot::channel(), oneshot::channel());
        let body = stream::once(async move {
            let _ = reading.send(());
            let _ = released.await;
            Ok::<_, Infallible>(Bytes::from(fake_png(500, 1)))
        });
        let (api, request) = (app.api.clone(), request.body(Body::from_stream(body)));
        let answer = tokio::spawn(async move {
            let answered = api.answer(request.expect("a request")).await;
            answered.expect("a response").status().as_u16()
        });
        is_reading.await.expect("the body is being read");
        Self { release, answer }
    }

    async fn finish(self) -> u16 {
        self.release.send(()).expect("still waiting");
        self.answer.await.expect("no panic")
    }
}

#[tokio::test]
async fn owner_gets_at_most_its_share_of_the_uploads_in_flight() {
    let keys = [
        ("SAFELIGHT_MAX_UPLOADS_IN_FLIGHT", "4"),
        ("SAFELIGHT_OWNERS", "{ eve = { max_uploads_in_flight_per_owner = 1 } }"),
    ];
    let app = TestApp::configured(&keys).await;
    let owners = ["ada", "bob", "eve"];
    let [ada, bob, eve] = owners.map(|owner| app.key(owner, "upload,read"));
    let (ada, bob, eve) = (ada.await, bob.await, eve.await);
    let post = |key: &Key| key.on(Request::post("/v1/images"));
    let mut slow = Vec::new();
    for _ in 0..2 {
        slow.push(SlowUpload::start(&app, post(&ada)).await);
    }
    let rejected = app.send(post(&ada), fake_png(500, 2)).await;
    rejected.assert_problem(429, "too_many_own_uploads");
    assert_eq!(rejected.header("retry-after"), "1");
    bob.upload(&app, "").await;
    slow.push(SlowUpload::start(&app, post(&eve)).await);
    let rejected = app.send(post(&eve), fake_png(500, 2)).await;
    rejected.assert_problem(429, "too_many_own_uploads");
    // One permit is left, then none.
    slow.push(SlowUpload::start(&app, post(&bob)).await);
    app.send(post(&bob), fake_png(500, 2)).await.assert_problem(503, "too_many_uploads");
    for upload in slow {
        assert_eq!(upload.finish().await, 202);
    }
    ada.upload(&app, "").await;
    for (key, share) in [(&ada, 2), (&eve, 1)] {
        let limits = key.get(&app, "/v1/limits").await.json();
        assert_eq!(limits["max_uploads_in_flight"], share);
    }
}

#[tokio::test]
async fn without_keys_one_client_may_use_all_upload_permits() {
    let app = TestApp::configured(&[("SAFELIGHT_MAX_UPLOADS_IN_FLIGHT", "2")]).await;
    let post = || Request::post("/v1/images");
    let slow = [SlowUpload::start(&app, post()).await, SlowUpload::start(&app, post()).await];
    app.send(post(), fake_png(500, 2)).await.assert_problem(503, "too_many_uploads");
    assert_eq!(app.get("/v1/limits").await.json()["max_uploads_in_flight"], 2);
    for upload in slow {
        assert_eq!(upload.finish().await, 202);
    }
}

#[tokio::test]
async fn caches_are_separate_per_owner() {
    let app = TestApp::configured(&[("SAFELIGHT_MEMORY_CACHE_BYTES", "1000000")]).await;
    let keys = [app.key("ada", "upload").await, app.key("bob", "upload").await];
    for bytes in [500, 3_000_000] {
        let mut paths = Vec::new();
        for key in &keys {
            let request = key.on(Request::post("/v1/images"));
            let upload = app.send(request, fake_png(bytes, 1)).await.json();
            app.write(task_id(&upload)).await;
            paths.push((image_id(&upload), format!("/images/{}", image_id(&upload))));
        }
        let [(first, ada_path), (_, bob_path)] = &paths[..] else { panic!("two uploads") };
        // A large object is streamed. Its read stays open while a client holds it, so that others can join.
        let get = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).expect("a request");
            app.api.answer(request).await.expect("a response")
        };
        let how = |answer: &axum::response::Response| {
            answer.headers()["cache-status"].to_str().expect("text").to_owned()
        };
        let [cold, shared] = if bytes < 1_000_000 {
            ["fwd=uri-miss; stored; detail=store", "hit; detail=memory"]
        } else {
            ["fwd=uri-miss; detail=store", "fwd=uri-miss; collapsed; detail=store"]
        };
        let (ada_first, ada_second) = (get(ada_path).await, get(ada_path).await);
        assert_eq!(how(&ada_first), format!("safelight; {cold}"));
        assert_eq!(how(&ada_second), format!("safelight; {shared}"));
        let (bob_first, bob_second) = (get(bob_path).await, get(bob_path).await);
        assert_eq!(how(&bob_first), format!("safelight; {cold}"), "ada's bytes were cached");
        assert_eq!(how(&bob_second), format!("safelight; {shared}"));
        drop((ada_first, ada_second, bob_first, bob_second));

        let delete = keys[0].on(Request::delete(format!("/v1/images/{first}")));
        assert_eq!(app.send(delete, Body::empty()).await.status.as_u16(), 202);
        app.get(ada_path).await.assert_problem(410, "image_deleted");
        assert_eq!(app.get(bob_path).await.body.len(), bytes);
    }
}

/// Counts the finished calls of one store method.
struct CallCounter(&'static str, Arc<AtomicUsize>);

#[async_trait]
impl FaultPlan for CallCounter {
    async fn before(&self, _: Call<'_>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn after(&self, call: Call<'_>, _: &(dyn Debug + Sync)) -> Result<(), StoreError> {
        if call.method == self.0 {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// An app, and a count of the finished calls of a store method.
async fn counting_calls(method: &'static str) -> (TestApp, impl Fn() -> usize) {
    let calls = Arc::new(AtomicUsize::new(0));
    let plan = CallCounter(method, calls.clone());
    let app =
        TestApp::with(&[], ApiOptions::default(), |inner| Arc::new(FaultyStore { inner, plan }))
            .await;
    (app, move || calls.load(Ordering::SeqCst))
}

/// Starts a request whose whole response can be awaited.
fn start_request(app: &TestApp, request: Builder) -> JoinHandle<TestResponse> {
    let (api, request) = (app.api.clone(), request.body(Body::empty()));
    tokio::spawn(async move {
        let response = api.answer(request.expect("a request")).await.expect("a response");
        let (parts, body) = response.into_parts();
        let body = http_body_util::BodyExt::collect(body).await.expect("a body");
        let body = body.to_bytes().to_vec();
        TestResponse { status: parts.status, headers: parts.headers, body }
    })
}

async fn ended(waiting: JoinHandle<TestResponse>) -> TestResponse {
    let ended = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    ended.expect("the response ends soon").expect("no panic")
}

#[tokio::test]
async fn held_and_streamed_responses_end_with_their_key() {
    let (app, lookups) = counting_calls("api_key").await;
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
    crate::app::eventually(async || lookups() >= before + 6).await;
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
    crate::app::eventually(async || loaded() == 2).await;
    app.key("ada", "read").await;
    ended(stream).await;
    ended(held).await.assert_problem(401, "key_missing");
}

#[tokio::test]
async fn access_to_a_private_image_is_checked_again_after_a_wait() {
    let (app, lookups) = counting_calls("api_key").await;
    let ada = app.key("ada", "upload,read").await;
    let upload = ada.upload(&app, "?visibility=private").await;
    let path = format!("/images/{}?wait=60", image_id(&upload));
    let revoked = app.key("ada", "read").await;
    let before = lookups();
    let waiting = [&revoked, &ada].map(|key| start_request(&app, key.on(Request::get(&path))));
    crate::app::eventually(async || lookups() == before + 2).await;
    app.parts.store.revoke_api_key(revoked.id).await.expect("revoked");
    app.write(task_id(&upload)).await;
    let [rejected, served] = waiting;
    ended(rejected).await.assert_problem(401, "invalid_key");
    assert_eq!(ended(served).await.status.as_u16(), 200);
}
