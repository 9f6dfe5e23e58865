//! Varnish before delivery nodes.

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

use super::{Site, eventually, folder, status, text};

/// Clients that ask at once.
const CROWD: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn varnish_asks_a_node_once_for_a_crowd_and_serves_ranges_from_its_copy() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(1).await?;
    let data = folder()?;
    let node = site.node(data.path(), &[])?;
    let varnish = block_in_place(|| Varnish::start(&[node.url()]))?;

    let (path, content) = &expected[0];
    let url = varnish.url();
    let answers = concurrent_requests::get(&[&*url; CROWD], path).await?;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == *content));
    let fetched =
        |answer: &&concurrent_requests::Response| answer.head.contains("varnish; fwd=miss; stored");
    assert_eq!(answers.iter().filter(fetched).count(), 1, "{}", answers[0].head);
    let hits = answers.iter().filter(|answer| answer.head.contains("varnish; hit")).count();
    assert_eq!(hits, CROWD - 1);

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
    // Accept does not matter where there is one format; the query never does.
    for (path, accept) in
        [(path.clone(), "image/avif,image/webp,*/*"), (format!("{path}?query"), "image/webp;q=0")]
    {
        let answer = client.request(Method::GET, &path).header(ACCEPT, accept).send().await?;
        assert_eq!(answer.bytes().await?, content);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn varnish_serves_what_it_has_while_every_node_is_away() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(1).await?;
    let data = folder()?;
    let mut node = site.node(data.path(), &[])?;
    let varnish = block_in_place(|| Varnish::start(&[node.url()]))?;
    let client = Client::new(&varnish.url())?;
    let (path, content) = &expected[0];
    assert_eq!(client.bytes(path).await?, content);
    block_in_place(|| node.kill())?;
    assert_eq!(client.bytes(path).await?, content);
    let refused = client.get(&expected[1].0).await?;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["cache-control"], "no-store");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_image_is_gone_from_varnish_too() -> Result<()> {
    let site = Site::start(0).await?;
    let data = folder()?;
    let hasty = ("SAFELIGHT_METADATA_CACHE_MS", "200");
    let node = site.node(data.path(), &[hasty])?;
    let varnish = block_in_place(|| Varnish::start(&[node.url()]))?;
    let purge = format!("[{:?}]", varnish.url());
    // Stores originals and makes no renditions: the task does not end, and can be cancelled.
    let args = ["worker", "--kinds", "write"];
    let env = [hasty, ("SAFELIGHT_PURGE_URLS", &*purge)];
    let _worker = block_in_place(|| site.fleet.start_node(&args, &env))?;

    let (client, front) = (site.client()?, Client::new(&varnish.url())?);
    let photo = pictures::jpeg(320, 240, 1)?;
    let task = client.upload(photo.clone()).await?;
    let path = text(&task["image"]["url"])?;
    eventually("the original is served", async || {
        let answer = front.get(path).await?;
        Ok(answer.status() == StatusCode::OK && answer.bytes().await? == photo)
    })
    .await?;
    let again = front.get(path).await?;
    let how = again.headers().get("cache-status").context("Cache-Status")?.to_str()?;
    assert!(how.ends_with("varnish; hit"), "{how}");

    client.cancel_task(text(&task["id"])?).await?;
    eventually("it is gone", async || Ok(status(&varnish.url(), path).await? == StatusCode::GONE))
        .await
}

/// When the receipt says so, it is gone everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_image_is_gone_from_varnish_and_from_the_shared_cache() -> Result<()> {
    let site = Site::start(0).await?;
    let (data, redis) = (folder()?, block_in_place(Redis::start)?);
    let (hasty, cache) = (("SAFELIGHT_METADATA_CACHE_MS", "200"), redis.url());
    let shared = ("SAFELIGHT_SHARED_CACHE_URL", &*cache);
    let node = site.node(data.path(), &[hasty, shared])?;
    let varnish = block_in_place(|| Varnish::start(&[node.url()]))?;
    let purge = format!("[{:?}]", varnish.url());
    let env = [hasty, shared, ("SAFELIGHT_PURGE_URLS", &*purge)];
    let _worker = block_in_place(|| site.fleet.start_node(&["worker"], &env))?;

    let (client, front) = (site.client()?, Client::new(&varnish.url())?);
    let task = client.finished(&client.upload(pictures::jpeg(320, 240, 1)?).await?).await?;
    let image = &task["image"];
    let renditions = image["renditions"].as_object().context("renditions")?;
    let paths: Vec<&str> =
        renditions.values().chain([image]).map(|one| text(&one["url"])).collect::<Result<_>>()?;
    for path in &paths {
        front.bytes(path).await?;
    }
    eventually("all of it is shared", async || Ok(redis.keys()? >= 2)).await?;

    let deletion = client.delete_image(text(&image["id"])?).await?;
    let done = client.finished(&deletion).await?;
    assert_eq!(done["status"], "succeeded", "{done:#}");
    assert_eq!(done["receipt"]["proxies"], 1, "{done:#}");
    for path in paths {
        assert_eq!(status(&varnish.url(), path).await?, StatusCode::GONE, "{path}");
        assert_eq!(status(node.url(), path).await?, StatusCode::GONE, "{path}");
    }
    assert_eq!(redis.keys()?, 0, "of nothing else there was any");
    Ok(())
}
