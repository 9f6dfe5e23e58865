//! Uploads and their renditions.

use anyhow::{Context, Result};
use reqwest::{
    Method, StatusCode,
    header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH},
};
use safelight_domain::ContentHash;
use safelight_testing::{
    client::{Client, Form, TestClient as _, accepted},
    fleet::Plan,
    pictures,
};
use serde_json::{Value, json};

use super::{Deployment, on_every_deployment};

on_every_deployment! {
    upload_creates_image_with_three_renditions,
    form_upload_stores_title_and_tags,
    renditions_are_upright,
    equal_uploads_share_their_bytes,
    non_image_uploads_fail_with_reason,
    idempotency_key_applies_on_every_node,
}

async fn upload_creates_image_with_three_renditions(at: &Deployment) -> Result<()> {
    let client = at.client()?;
    let photo = pictures::jpeg(1600, 1200, 1)?;
    let task = client.upload(photo.clone()).await?;
    assert_eq!((&task["kind"], &task["lane"]), (&json!("upload"), &json!("interactive")));
    assert_eq!(task["progress"]["total"], 2);

    let task = client.finished(&task).await?;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    assert_eq!(task["progress"], json!({ "total": 2, "succeeded": 2, "failed": 0 }));
    assert!(task["finished_at"].is_string() && task["error"].is_null(), "{task:#}");
    let image = &task["image"];
    let facts = ["width", "height", "format", "bytes", "sha256"].map(|key| image[key].clone());
    let expected =
        [json!(1600), json!(1200), json!("jpeg"), json!(photo.len()), json!(sha256(&photo))];
    assert_eq!(facts, expected);

    let original = client.bytes(text(&image["url"])?).await?;
    assert!(original == photo, "the original's bytes differ");
    assert_eq!(image["renditions"].as_object().map(serde_json::Map::len), Some(3));
    for (preset, size) in [("small", (256, 192)), ("medium", (640, 480)), ("large", (1280, 960))] {
        let (bytes, media_type) = rendition(&client, image, preset, size).await?;
        assert_eq!(media_type, "image/jpeg");
        assert_eq!(image["renditions"][preset]["bytes"], bytes.len());
        assert_unchanged(&client, text(&image["renditions"][preset]["url"])?).await?;
    }
    assert_unchanged(&client, text(&image["url"])?).await?;

    let known = client.json(&format!("/v1/images/{}", text(&image["id"])?)).await?;
    assert_eq!(known["sha256"], image["sha256"]);
    assert_eq!(known["renditions"], image["renditions"]);
    Ok(())
}

async fn form_upload_stores_title_and_tags(at: &Deployment) -> Result<()> {
    let client = at.client()?;
    let form = Form {
        filename: "clearing.png".to_owned(),
        file: pictures::png_with_alpha(400, 300, 2)?,
        title: "A clearing".to_owned(),
        tags: "forest,mist".to_owned(),
    };
    let task = accepted(client.post_form(&form).await?).await?;
    let task = client.finished(&task).await?;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let image = &task["image"];
    assert_eq!((&image["format"], &image["sha256"]), (&json!("png"), &json!(sha256(&form.file))));

    // Transparent renditions are WebP. Small pictures are not enlarged.
    let (bytes, media_type) = rendition(&client, image, "small", (256, 192)).await?;
    assert_eq!(media_type, "image/webp");
    let corner = image::load_from_memory(&bytes)?.to_rgba8().get_pixel(1, 1).0[3];
    assert_eq!(corner, 0, "the left half is not transparent");
    rendition(&client, image, "large", (400, 300)).await?;

    let known = client.json(&format!("/v1/images/{}", text(&image["id"])?)).await?;
    assert_eq!(known["title"], "A clearing");
    assert_eq!(known["tags"], json!(["forest", "mist"]));
    Ok(())
}

async fn renditions_are_upright(at: &Deployment) -> Result<()> {
    let client = at.client()?;
    // Orientation 6: the picture has to be rotated by 90°.
    let photo = pictures::with_orientation(&pictures::jpeg(400, 300, 3)?, 6);
    let task = client.finished(&client.upload(photo).await?).await?;
    assert_eq!(task["status"], "succeeded", "{task:#}");
    let sizes = ["width", "height", "stored_width", "stored_height"].map(|key| &task["image"][key]);
    assert_eq!(sizes, [300, 400, 400, 300]);
    rendition(&client, &task["image"], "small", (192, 256)).await?;
    Ok(())
}

async fn equal_uploads_share_their_bytes(at: &Deployment) -> Result<()> {
    let client = at.client()?;
    let photo = pictures::jpeg(320, 240, 4)?;
    let (first, second) =
        tokio::try_join!(client.upload(photo.clone()), client.upload(photo.clone()))?;
    assert_ne!(first["id"], second["id"]);
    for task in [first, second] {
        let task = client.finished(&task).await?;
        assert_eq!(task["status"], "succeeded", "{task:#}");
        assert_eq!(task["image"]["sha256"], sha256(&photo));
        assert!(client.bytes(text(&task["image"]["url"])?).await? == photo);
    }
    Ok(())
}

async fn non_image_uploads_fail_with_reason(at: &Deployment) -> Result<()> {
    let client = at.client()?;
    let rejected = client.post_image(pictures::text(), &[]).await?;
    assert_eq!(rejected.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(rejected.headers()[CONTENT_TYPE], "application/problem+json");

    let truncated = pictures::truncated(&pictures::jpeg(640, 480, 5)?);
    for body in [pictures::disguised_text(), truncated] {
        let task = client.finished(&client.upload(body).await?).await?;
        assert_eq!(task["status"], "failed", "{task:#}");
        assert_eq!(task["error"]["retryable"], false, "{task:#}");
        assert!(task["error"]["code"].is_string() && task["error"]["message"].is_string());
        for job in task["jobs"].as_array().context("jobs")? {
            assert!(job["attempt"].as_u64() <= Some(1), "a permanent failure was retried: {job:#}");
        }
    }
    Ok(())
}

async fn idempotency_key_applies_on_every_node(at: &Deployment) -> Result<()> {
    let photo = pictures::jpeg(200, 150, 6)?;
    let key = [("Idempotency-Key", "holiday-1")];
    let mut ids = Vec::new();
    for _ in 0..2 {
        for node in at.nodes()? {
            ids.push(accepted(node.post_image(photo.clone(), &key).await?).await?["id"].clone());
        }
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    for node in at.nodes()? {
        let other = node.post_image(pictures::jpeg(200, 150, 7)?, &key).await?;
        assert_eq!(other.status(), StatusCode::UNPROCESSABLE_ENTITY);
    }
    Ok(())
}

/// Fetches a rendition. Checks that its bytes and the image document have this size.
async fn rendition(
    client: &Client,
    image: &Value,
    preset: &str,
    size: (u32, u32),
) -> Result<(Vec<u8>, String)> {
    let expected = &image["renditions"][preset];
    assert_eq!(
        (&expected["width"], &expected["height"]),
        (&json!(size.0), &json!(size.1)),
        "{preset}"
    );
    let answer = client.get(text(&expected["url"])?).await?.error_for_status()?;
    let media_type = answer.headers()[CONTENT_TYPE].to_str()?.to_owned();
    let bytes = answer.bytes().await?.to_vec();
    let picture = image::load_from_memory(&bytes)?;
    assert_eq!((picture.width(), picture.height()), size, "{preset}");
    Ok((bytes, media_type))
}

/// Checks that the answer has a strong `ETag`, and that a conditional request gets 304 without a body.
async fn assert_unchanged(client: &Client, path: &str) -> Result<()> {
    let tag = client.get(path).await?.headers()[ETAG].clone();
    assert!(tag.as_bytes().starts_with(b"\""), "{tag:?} is not strong");
    let again = client.request(Method::GET, path).header(IF_NONE_MATCH, tag).send().await?;
    assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(again.bytes().await?.len(), 0);
    Ok(())
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("expected a string, found {value}"))
}

fn sha256(bytes: &[u8]) -> String {
    ContentHash::of(bytes).to_string()
}

#[tokio::test]
async fn workers_serve_their_own_metrics() -> Result<()> {
    let fleet = super::fleet(Plan { workers: 1, ..Plan::default() }).await?;
    let client = Client::new(&fleet.url())?;
    let task = client.finished(&client.upload(pictures::jpeg(320, 240, 9)?).await?).await?;
    assert_eq!(task["status"], "succeeded", "{task:#}");

    let worker = Client::new(fleet.workers[0].url())?;
    worker.bytes("/livez").await?;
    worker.bytes("/readyz").await?;
    let metrics = String::from_utf8(worker.bytes("/metrics").await?.to_vec())?;
    for kind in ["write", "thumbnail"] {
        let line = format!("safelight_attempts_total{{kind=\"{kind}\",outcome=\"succeeded\"");
        assert!(metrics.contains(&line), "{metrics}");
    }
    let rejected = worker.get("/v1/tasks").await?;
    assert_eq!(rejected.status(), StatusCode::NOT_FOUND);
    Ok(())
}
