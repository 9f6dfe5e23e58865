//! Equal bytes of two owners. They share one blob, and nothing that an owner can observe.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use reqwest::{Response, StatusCode};
use safelight_testing::{
    chaos::Link,
    client::{Client, TestClient as _},
    pictures,
    redis::Redis,
};
use serde_json::Value;
use tokio::task::block_in_place;

use super::{
    DELAY, DeliverySetup, NO_DISK, NO_MEMORY, eventually, folder, text, tiers::files_with,
};
use crate::e2e::access::{create_fleet_key, secret};

/// An owner with one picture.
struct OwnerWithImage {
    client: Client,
    image: Value,
}

impl OwnerWithImage {
    async fn new(setup: &DeliverySetup, owner: &str, picture: &[u8]) -> Result<Self> {
        let key = create_fleet_key(&setup.fleet, owner, "upload,read").await?;
        let client = Client::with_key(setup.fleet.apis[0].url(), secret(&key)?)?;
        let task = client.upload(picture.to_vec()).await?;
        let image = client.finished(&task).await?["image"].clone();
        Ok(Self { client, image })
    }

    /// The paths of the original and of the renditions.
    fn paths(&self) -> Result<Vec<&str>> {
        let renditions = self.image["renditions"].as_object().context("renditions")?;
        renditions.values().chain([&self.image]).map(|one| text(&one["url"])).collect()
    }
}

/// Reads an image. Returns its `Cache-Status` and its bytes.
async fn read(client: &Client, path: &str) -> Result<(String, Bytes)> {
    let answer: Response = client.get(path).await?.error_for_status()?;
    let cache_status =
        answer.headers().get("cache-status").context("Cache-Status")?.to_str()?.to_owned();
    Ok((cache_status, answer.bytes().await?))
}

/// Reads the same bytes for both owners until the node has cached them in `tier`. His first read must be a miss.
async fn fill_cache(
    tier: &str,
    client: &Client,
    ada: &OwnerWithImage,
    bob: &OwnerWithImage,
) -> Result<()> {
    let hit = format!("safelight; hit; detail={tier}");
    // Equal objects of one owner share a cache entry, so only the first one is a miss.
    let mut known: Vec<Bytes> = Vec::new();
    for (ada_path, bob_path) in ada.paths()?.into_iter().zip(bob.paths()?) {
        // The node may fill its cache after it has answered.
        eventually("it is cached", async || Ok(read(client, ada_path).await?.0 == hit)).await?;
        let (_, content) = read(client, ada_path).await?;
        let (cache_status, first) = read(client, bob_path).await?;
        ensure!(first == content, "{bob_path} has other bytes than {ada_path}");
        if known.contains(&content) {
            continue;
        }
        ensure!(
            cache_status == "safelight; fwd=uri-miss; stored; detail=store",
            "{tier}: {cache_status}"
        );
        eventually("it is cached", async || Ok(read(client, bob_path).await?.0 == hit)).await?;
        known.push(content);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_are_not_shared_between_owners() -> Result<()> {
    let setup = DeliverySetup::start(0).await?;
    let redis = block_in_place(Redis::start)?;
    let (cache, short_ttl) = (redis.url(), ("SAFELIGHT_METADATA_CACHE_MS", "200"));
    let shared = ("SAFELIGHT_SHARED_CACHE_URL", &*cache);
    let _worker = block_in_place(|| setup.fleet.start_node(&["worker"], &[short_ttl, shared]))?;
    let (_chaos, endpoint) = setup.link(Link::Slow(DELAY))?;
    let slow = ("AWS_ENDPOINT", &*endpoint);
    let folders = [folder()?, folder()?, folder()?];
    let nodes = [
        ("memory", setup.node(folders[0].path(), &[short_ttl, slow, NO_DISK])?),
        ("disk", setup.node(folders[1].path(), &[short_ttl, slow, NO_MEMORY])?),
        ("shared", setup.node(folders[2].path(), &[short_ttl, slow, shared, NO_MEMORY, NO_DISK])?),
    ];
    let picture = pictures::jpeg(320, 240, 1)?;
    let ada = OwnerWithImage::new(&setup, "ada", &picture).await?;
    let bob = OwnerWithImage::new(&setup, "bob", &picture).await?;

    for (tier, node) in &nodes {
        fill_cache(tier, &Client::new(node.url())?, &ada, &bob).await?;
    }
    let both = redis.keys()?;

    let deletion = ada.client.delete_image(text(&ada.image["id"])?).await?;
    let done = ada.client.finished(&deletion).await?;
    ensure!(done["status"] == "succeeded", "{done:#}");
    ensure!(
        redis.keys()? * 2 == both,
        "{} of {both} keys remain, expected his half",
        redis.keys()?
    );
    let count_files = || -> Result<usize> { Ok(files_with(folders[1].path(), &picture)?.len()) };
    ensure!(count_files()? == 2, "not one file for each owner");
    for (tier, node) in &nodes {
        let client = Client::new(node.url())?;
        ensure!(client.get(ada.paths()?[0]).await?.status() == StatusCode::GONE);
        for path in bob.paths()? {
            let (cache_status, _) = read(&client, path).await?;
            ensure!(cache_status == format!("safelight; hit; detail={tier}"), "{cache_status}");
        }
    }
    eventually("her file is deleted", async || Ok(count_files()? == 1)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn single_flight_is_per_owner() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let picture = pictures::jpeg(320, 240, 1)?;
    let ada = OwnerWithImage::new(&setup, "ada", &picture).await?;
    let bob = OwnerWithImage::new(&setup, "bob", &picture).await?;
    let (_chaos, endpoint) = setup.link(Link::Slow(DELAY * 10))?;
    let data = folder()?;
    let node = setup.node(data.path(), &[("AWS_ENDPOINT", &*endpoint), NO_MEMORY, NO_DISK])?;
    let client = Client::new(node.url())?;
    let (ada_path, bob_path) = (text(&ada.image["url"])?, text(&bob.image["url"])?);
    let (ada_read, bob_read, bob_again) =
        tokio::join!(read(&client, ada_path), read(&client, bob_path), read(&client, bob_path));
    ensure!(!ada_read?.0.contains("collapsed"), "her read joined his");
    let bob_reads = [bob_read?.0, bob_again?.0];
    let joined = bob_reads.iter().filter(|cache_status| cache_status.contains("collapsed")).count();
    ensure!(joined == 1, "his reads did not join each other: {bob_reads:?}");
    Ok(())
}
