//! Access control: every route, with every scope, on own, foreign and unknown objects.

mod keys;
mod owner_limits;
mod private_images;
pub mod requests;

use std::time::Duration;

use axum::{
    body::Body,
    http::{Request, request::Builder},
};
use safelight_domain::{Scope, Scopes, new_id, secrets::ApiSecret};
use safelight_store::NewApiKey;
use serde_json::{Value, json};
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
        let id = new_id();
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
    pub fn on(&self, request: Builder) -> Builder {
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
        .replace("{key}", &new_id().to_string());
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
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"safelight\"");
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
                // RFC 6750, section 3.1.
                let names: Vec<_> = needed.iter().map(|scope| scope.as_str()).collect();
                let error = "Bearer realm=\"safelight\", error=\"insufficient_scope\", scope=";
                let challenge = format!("{error}\"{}\"", names.join(" "));
                assert_eq!(answer.header("www-authenticate"), challenge, "{method} {route}");
            }
        }
    }
}

/// RFC 8288: every list that has pages links to the next one, as its document has its cursor.
#[tokio::test]
async fn lists_link_to_their_next_page() {
    let app = TestApp::new().await;
    let key = app.key("ada", "upload,read,admin").await;
    for _ in 0..3 {
        key.upload(&app, "").await;
        let body = json!({ "owner": "ada", "scopes": ["read"] }).to_string();
        let create = key.on(Request::post("/v1/keys")).header("content-type", "application/json");
        assert_eq!(app.send(create, body).await.status.as_u16(), 201);
    }
    for (path, member) in [
        ("/v1/images?limit=2", "images"),
        ("/v1/tasks?status=queued&limit=2", "tasks"),
        ("/v1/keys?owner=ada&limit=2", "keys"),
        ("/v1/audit?limit=2", "entries"),
    ] {
        let first = key.get(&app, path).await;
        let document = first.json();
        let cursor = document["next_cursor"].as_str().expect("a cursor");
        let next = format!("{path}&cursor={cursor}");
        assert_eq!(first.header("link"), format!("<{next}>; rel=\"next\""));
        let second = key.get(&app, &next).await;
        assert_eq!(second.status.as_u16(), 200, "{}", second.text());
        assert_ne!(second.json()[member][0]["id"], document[member][0]["id"]);
        let all = key.get(&app, &path.replace("limit=2", "limit=500")).await;
        assert!(all.json()["next_cursor"].is_null());
        assert_eq!(all.header("link"), "", "{path}");
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
        let unknown = json!({ "id": new_id(), "image": { "id": new_id() } });
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
