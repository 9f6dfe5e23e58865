//! Varnish in front of delivery nodes.

use anyhow::{Context, Result};
use reqwest::{
    Method, StatusCode,
    header::{ACCEPT, IF_MATCH, IF_NONE_MATCH, RANGE},
};
use safelight_testing::{
    client::{Client, TestClient as _},
    concurrent_requests, pictures,
    redis::Redis,
    varnish::Varnish,
};
use tokio::task::block_in_place;

use super::{DeliverySetup, eventually, folder, status, text};

/// Concurrent clients.
const CLIENTS: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn varnish_collapses_requests_and_serves_ranges() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(1).await?;
    let data = folder()?;
    let node = setup.node(data.path(), &[])?;
    let varnish = block_in_place(|| Varnish::start(&[node.url()]))?;

    let (path, content) = &expected[0];
    let url = varnish.url();
    let answers = concurrent_requests::get(&[&*url; CLIENTS], path).await?;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == *content));
    let fetched =
        |answer: &&concurrent_requests::Response| answer.head.contains("varnish; fwd=miss; stored");
    assert_eq!(answers.iter().filter(fetched).count(), 1, "{}", answers[0].head);
    let hits = answers.iter().filter(|answer| answer.head.contains("varnish; hit")).count();
    assert_eq!(hits, CLIENTS - 1);

    let client = Client::new(&url)?;
    let range = client.request(Method::GET, path).header(RANGE, "bytes=10-19").send().await?;
    assert_eq!(range.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(range.bytes().await?, content.slice(10..20));
    let several = client.request(Method::GET, path).header(RANGE, "bytes=0-9,20-29").send().await?;
    assert_eq!(several.status(), StatusCode::OK);
    assert_eq!(several.bytes().await?, content);
    for (condition, value, status) in [
        (IF_NONE_MATCH, "*", StatusCode::NOT_MODIFIED),
        (IF_MATCH, "\"other\"", StatusCode::PRECONDITION_FAILED),
    ] {
        let answer = client.request(Method::GET, path).header(condition, value).send().await?;
        assert_eq!(answer.status(), status);
    }
    // `Accept` does not matter for an image with one format. The query never matters.
    for (path, accept) in [
        (path.clone(), "image/avif,image/webp,*/*"),
        (format!("{path}{}query", if path.contains('?') { '&' } else { '?' }), "image/webp;q=0"),
    ] {
        let answer = client.request(Method::GET, &path).header(ACCEPT, accept).send().await?;
        assert_eq!(answer.bytes().await?, content);
    }
    Ok(())
}

/// No client can fill the cache with copies of one image, or have its own headers given to others. Versions are
/// kept apart.
#[tokio::test(flavor = "multi_thread")]
async fn varnish_keeps_one_copy_whatever_clients_send() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(1).await?;
    let data = folder()?;
    let cors = ("SAFELIGHT_CORS_ORIGINS", "[\"https://app.example.org\"]");
    let node = setup.node(data.path(), &[cors])?;
    let varnish = block_in_place(|| Varnish::start(&[node.url()]))?;
    let client = Client::new(&varnish.url())?;
    let (url, content) =
        expected.iter().find(|(url, _)| url.contains("?v=")).context("a rendition")?;
    let (path, _) = url.split_once('?').context("a version")?;
    let how = |answer: &reqwest::Response| {
        let status = answer.headers().get("cache-status").and_then(|value| value.to_str().ok());
        status.unwrap_or_default().to_owned()
    };
    for (url, lifetime) in
        [(&**url, "public, max-age=31536000, immutable"), (path, "public, max-age=60")]
    {
        for number in 0..5 {
            let request = client.request(Method::GET, url);
            let request = request.header("origin", format!("https://invented-{number}.example"));
            let answer = request.header("x-request-id", format!("chosen-{number}")).send().await?;
            let expected = if number == 0 { "varnish; fwd=miss; stored" } else { "varnish; hit" };
            assert!(how(&answer).ends_with(expected), "{number}: {answer:?}");
            assert!(!answer.headers().contains_key("x-request-id"), "{answer:?}");
            assert!(!answer.headers().contains_key("vary"), "{answer:?}");
            assert_eq!(answer.headers()["access-control-allow-origin"], "*");
            assert_eq!(answer.headers()["cache-control"], lifetime);
            assert_eq!(answer.bytes().await?, content);
        }
    }
    // Invented versions are not kept, and disturb no other copy.
    for number in 0..5 {
        let invented = format!("{path}?v={number:016x}");
        let answer = client.get(&invented).await?;
        assert!(how(&answer).ends_with("varnish; fwd=miss"), "{answer:?}");
        assert_eq!(answer.headers()["cache-control"], "public, no-cache");
    }
    for url in [&**url, path] {
        assert!(how(&client.get(url).await?).ends_with("varnish; hit"));
    }
    // An original has one version, whatever is invented.
    let (original, _) = path.rsplit_once('/').context("an original")?;
    for number in 0..5 {
        let answer = client.get(&format!("{original}?v={number:016x}")).await?;
        let expected = if number == 0 { "varnish; fwd=miss; stored" } else { "varnish; hit" };
        assert!(how(&answer).ends_with(expected), "{number}: {answer:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn varnish_serves_cached_images_while_nodes_are_down() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(1).await?;
    let data = folder()?;
    let mut node = setup.node(data.path(), &[])?;
    let varnish = block_in_place(|| Varnish::start(&[node.url()]))?;
    let client = Client::new(&varnish.url())?;
    let (path, content) = &expected[0];
    assert_eq!(client.bytes(path).await?, content);
    block_in_place(|| node.kill())?;
    assert_eq!(client.bytes(path).await?, content);
    let rejected = client.get(&expected[1].0).await?;
    assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(rejected.headers()["cache-control"], "no-store");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_purges_image_from_varnish() -> Result<()> {
    let setup = DeliverySetup::start(0).await?;
    let data = folder()?;
    let short_ttl = ("SAFELIGHT_METADATA_CACHE_MS", "200");
    let node = setup.node(data.path(), &[short_ttl])?;
    let varnish = block_in_place(|| Varnish::start(&[node.url()]))?;
    let purge = format!("[{:?}]", varnish.url());
    // This worker makes no renditions, so the task does not end and can be cancelled.
    let args = ["worker", "--kinds", "write"];
    let env = [short_ttl, ("SAFELIGHT_PURGE_URLS", &*purge)];
    let _worker = block_in_place(|| setup.fleet.start_node(&args, &env))?;

    let (client, proxy_client) = (setup.client()?, Client::new(&varnish.url())?);
    let photo = pictures::jpeg(320, 240, 1)?;
    let task = client.upload(photo.clone()).await?;
    let path = text(&task["image"]["url"])?;
    eventually("the original is served", async || {
        let answer = proxy_client.get(path).await?;
        Ok(answer.status() == StatusCode::OK && answer.bytes().await? == photo)
    })
    .await?;
    let again = proxy_client.get(path).await?;
    let cache_status = again.headers().get("cache-status").context("Cache-Status")?.to_str()?;
    assert!(cache_status.ends_with("varnish; hit"), "{cache_status}");

    client.cancel_task(text(&task["id"])?).await?;
    eventually("the image is gone", async || {
        Ok(status(&varnish.url(), path).await? == StatusCode::GONE)
    })
    .await
}

/// Once the receipt says that the image is deleted, no cache has it.
#[tokio::test(flavor = "multi_thread")]
async fn delete_purges_image_from_varnish_and_shared_cache() -> Result<()> {
    let setup = DeliverySetup::start(0).await?;
    let (data, redis) = (folder()?, block_in_place(Redis::start)?);
    let (short_ttl, cache) = (("SAFELIGHT_METADATA_CACHE_MS", "200"), redis.url());
    let shared = ("SAFELIGHT_SHARED_CACHE_URL", &*cache);
    let node = setup.node(data.path(), &[short_ttl, shared])?;
    let varnish = block_in_place(|| Varnish::start(&[node.url()]))?;
    let purge = format!("[{:?}]", varnish.url());
    let env = [short_ttl, shared, ("SAFELIGHT_PURGE_URLS", &*purge)];
    let _worker = block_in_place(|| setup.fleet.start_node(&["worker"], &env))?;

    let (client, proxy_client) = (setup.client()?, Client::new(&varnish.url())?);
    let task = client.finished(&client.upload(pictures::jpeg(320, 240, 1)?).await?).await?;
    let image = &task["image"];
    let renditions = image["renditions"].as_object().context("renditions")?;
    let paths: Vec<&str> =
        renditions.values().chain([image]).map(|one| text(&one["url"])).collect::<Result<_>>()?;
    for path in &paths {
        proxy_client.bytes(path).await?;
    }
    eventually("the shared cache has all objects", async || Ok(redis.keys()? >= 2)).await?;

    let deletion = client.delete_image(text(&image["id"])?).await?;
    let done = client.finished(&deletion).await?;
    assert_eq!(done["status"], "succeeded", "{done:#}");
    assert_eq!(done["receipt"]["proxies"], 1, "{done:#}");
    for path in paths {
        assert_eq!(status(&varnish.url(), path).await?, StatusCode::GONE, "{path}");
        assert_eq!(status(node.url(), path).await?, StatusCode::GONE, "{path}");
    }
    assert_eq!(redis.keys()?, 0, "the shared cache still has keys");
    Ok(())
}
