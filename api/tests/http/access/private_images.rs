//! Who may read the bytes of private and public images: by key, by signed URL, through caches.

use std::time::Instant;

use axum::{body::Body, http::Request};
use chrono::{DateTime, TimeDelta, Utc};
use safelight_domain::{ImageId, secrets};
use serde_json::{Value, json};

use super::{
    Key,
    requests::{counting_calls, ended, start_request},
};
use crate::app::{TestApp, TestResponse, addressed, eventually, fake_png, image_id, task_id};

/// A private image of Ada's with a rendition, and keys that may or may not read it.
struct PrivateImage {
    app: TestApp,
    id: ImageId,
    ada: Key,
    bob: Key,
}

impl PrivateImage {
    async fn new() -> Self {
        let app = TestApp::new().await;
        let ada = app.key("ada", "upload,read").await;
        let bob = app.key("bob", "upload,read,admin").await;
        let upload = ada.upload(&app, "?visibility=private").await;
        assert_eq!(upload["image"]["visibility"], "private");
        app.write(task_id(&upload)).await;
        app.render(task_id(&upload), b"rendered").await;
        Self { app, id: image_id(&upload), ada, bob }
    }

    /// Asks for a signed URL.
    async fn sign(&self, key: &Key, body: Value) -> TestResponse {
        let request = key.on(Request::post(format!("/v1/images/{}/signed-url", self.id)));
        let request = request.header("content-type", "application/json");
        self.app.send(request, body.to_string()).await
    }
}

#[tokio::test]
async fn private_image_requires_its_owners_key_or_a_signature() {
    let image = PrivateImage::new().await;
    let PrivateImage { app, id, ada, bob } = &image;
    let uploads_only = app.key("ada", "upload").await;
    for path in [format!("/images/{id}"), format!("/images/{id}/small")] {
        // The second request is served from memory.
        for _ in 0..2 {
            let answer = ada.get(app, &path).await;
            assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
            assert_eq!(answer.header("cache-control"), "private, no-cache");
            app.get(&path).await.assert_problem(401, "key_missing");
            uploads_only.get(app, &path).await.assert_problem(403, "scope_missing");
            bob.get(app, &path).await.assert_problem(404, "image_not_found");
        }
    }

    let signed = image.sign(ada, json!({ "preset": "small", "expires_in": 60 })).await;
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
    let key = signed["key_id"].as_str().expect("a key");
    app.parts.store.revoke_signing_key(key).await.expect("revoked");
    app.get(url).await.assert_problem(403, "invalid_signature");
}

/// Whoever has no right to read a private image learns nothing about which ids are in use: neither from the
/// answer nor from its headers.
#[tokio::test]
async fn private_unknown_and_deleted_images_are_answered_alike() {
    let image = PrivateImage::new().await;
    let PrivateImage { app, id, ada, bob } = &image;
    let deleted = image_id(&ada.upload(app, "?visibility=private").await);
    let delete = ada.on(Request::delete(format!("/v1/images/{deleted}")));
    assert_eq!(app.send(delete, Body::empty()).await.status.as_u16(), 202);
    let cancelled = ada.upload(app, "?visibility=private").await;
    let cancel = ada.on(Request::post(format!("/v1/tasks/{}/cancel", task_id(&cancelled))));
    assert_eq!(app.send(cancel, Body::empty()).await.status.as_u16(), 202);
    let pending = image_id(&ada.upload(app, "?visibility=private").await);
    let ids = [*id, deleted, image_id(&cancelled), pending, ImageId::new()];

    let others = app.key("bob", "upload").await;
    let signed = image.sign(ada, json!({})).await.json();
    let signature = signed["url"].as_str().and_then(|url| url.split('?').nth(1)).expect("a query");
    let forged = format!("?{signature}x");
    let unknown_key = "?expires=4000000000&key_id=sk_unknown&signature=x";
    let broken = "?expires=4000000000&signature=x";
    let keys = [
        ("nobody", None, 401),
        ("an unknown key", Some("Bearer sl_unknown".to_owned()), 401),
        ("another scheme", Some("Basic YTpi".to_owned()), 401),
        ("another's key", Some(bob.bearer.clone()), 404),
        ("another's key without the scope", Some(others.bearer.clone()), 404),
    ];
    for (who, authorization, status) in keys {
        for query in ["", "?wait=0", "?v=0123456789abcdef", &forged, unknown_key, broken] {
            // A signature counts more than a key.
            let status = if query.contains("signature") { 403 } else { status };
            for preset in ["", "/small"] {
                for method in ["GET", "HEAD"] {
                    let mut answers = Vec::new();
                    for id in ids {
                        let path = format!("/images/{id}{preset}");
                        let request =
                            Request::builder().method(method).uri(format!("{path}{query}"));
                        let request = match &authorization {
                            Some(value) => request.header("authorization", value),
                            None => request,
                        };
                        let answer = app.send(request, Body::empty()).await;
                        assert_eq!(answer.status.as_u16(), status, "{who} {method} {path}{query}");
                        let mut headers = answer.headers.clone();
                        headers.remove("x-request-id");
                        answers.push((headers, answer.text().replace(&id.to_string(), "ID")));
                    }
                    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
                }
            }
        }
    }
    // A cached answer must not be that of another time either.
    app.get(&format!("/images/{id}")).await.assert_problem(401, "key_missing");
}

/// If one were known for longer than the other, the time of an answer would tell them apart.
#[tokio::test]
async fn private_images_are_looked_up_as_often_as_unknown_ones() {
    let (app, lookups) = counting_calls("image").await;
    let ada = app.key("ada", "upload,read").await;
    let private = image_id(&ada.upload(&app, "?visibility=private").await);
    for id in [private, ImageId::new()] {
        let (started, before) = (Instant::now(), lookups());
        let path = format!("/images/{id}");
        eventually(async || {
            app.get(&path).await.assert_problem(401, "key_missing");
            lookups() == before + 2
        })
        .await;
        let again = started.elapsed();
        assert!(
            (1..4).contains(&again.as_secs()),
            "a second later, not metadata_cache_ms: {again:?}"
        );
    }
}

#[tokio::test]
async fn expiry_of_a_signed_url_has_one_spelling_and_an_end() {
    let image = PrivateImage::new().await;
    let PrivateImage { app, id, ada, .. } = &image;
    let signed = image.sign(ada, json!({})).await.json();
    let url = signed["url"].as_str().expect("a URL");
    assert_eq!(app.get(url).await.status.as_u16(), 200);
    for other in ["expires=+", "expires=0", "expires=%30", "expires=-"] {
        let url = url.replace("expires=", other);
        app.get(&url).await.assert_problem(403, "invalid_signature");
    }
    let key = signed["key_id"].as_str().expect("a key");
    let secret = app.parts.store.signing_key(key).await.expect("read").expect("a key").secret;
    let path = format!("/images/{id}");
    let year = 365 * 86_400;
    for (seconds, status) in [(60, 200), (year, 200), (2 * year, 403), (1 << 61, 403)] {
        let expires = Utc::now().timestamp() + seconds;
        let signature = secrets::sign_path(&secret, &path, expires, key);
        let url = format!("{path}?expires={expires}&key_id={key}&signature={signature}");
        assert_eq!(app.get(&url).await.status.as_u16(), status, "{seconds}");
    }
}

#[tokio::test]
async fn only_valid_requests_for_signed_urls_are_granted() {
    let image = PrivateImage::new().await;
    let PrivateImage { ada, bob, .. } = &image;
    image.sign(bob, json!({})).await.assert_problem(404, "image_not_found");
    image.sign(ada, json!({ "preset": "huge" })).await.assert_problem(404, "preset_not_found");
    for bad in [0, 31_536_001] {
        image.sign(ada, json!({ "expires_in": bad })).await.assert_problem(400, "invalid_body");
    }
}

#[tokio::test]
async fn signed_url_is_valid_until_it_expires() {
    let image = PrivateImage::new().await;
    let started = Utc::now();
    let short = image.sign(&image.ada, json!({ "expires_in": 1 })).await.json();
    let expires: DateTime<Utc> =
        short["expires_at"].as_str().and_then(|at| at.parse().ok()).expect("a time");
    assert!(started + TimeDelta::seconds(1) <= expires, "{started} {expires}: too short");
    let url = short["url"].as_str().expect("a URL").to_owned();
    eventually(async || image.app.get(&url).await.status.as_u16() == 403).await;
    image.app.get(&url).await.assert_problem(403, "signature_expired");
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
async fn access_to_a_private_image_is_checked_again_after_a_wait() {
    let (app, lookups) = counting_calls("api_keys").await;
    let ada = app.key("ada", "upload,read").await;
    let upload = ada.upload(&app, "?visibility=private").await;
    let path = format!("/images/{}?wait=60", image_id(&upload));
    let revoked = app.key("ada", "read").await;
    let before = lookups();
    let waiting = [&revoked, &ada].map(|key| start_request(&app, key.on(Request::get(&path))));
    eventually(async || lookups() == before + 2).await;
    app.parts.store.revoke_api_key(revoked.id).await.expect("revoked");
    app.write(task_id(&upload)).await;
    let [rejected, served] = waiting;
    ended(rejected).await.assert_problem(401, "invalid_key");
    assert_eq!(ended(served).await.status.as_u16(), 200);
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
            app.api.answer(addressed(request)).await.expect("a response")
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
