//! Equal bytes of two owners: shared in the store, and in nothing that either can see.

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

use super::{DELAY, NO_DISK, NO_MEMORY, Site, eventually, folder, text, tiers::files_with};
use crate::e2e::access::{fleets_key, secret};

/// An owner with one picture.
struct Holder {
    client: Client,
    image: Value,
}

impl Holder {
    async fn new(site: &Site, owner: &str, picture: &[u8]) -> Result<Self> {
        let key = fleets_key(&site.fleet, owner, "upload,read").await?;
        let client = Client::with_key(site.fleet.apis[0].url(), secret(&key)?)?;
        let task = client.upload(picture.to_vec()).await?;
        let image = client.finished(&task).await?["image"].clone();
        Ok(Self { client, image })
    }

    /// Where the original and the renditions are.
    fn paths(&self) -> Result<Vec<&str>> {
        let renditions = self.image["renditions"].as_object().context("renditions")?;
        renditions.values().chain([&self.image]).map(|one| text(&one["url"])).collect()
    }
}

/// A read, and what it says of itself.
async fn read(client: &Client, path: &str) -> Result<(String, Bytes)> {
    let answer: Response = client.get(path).await?.error_for_status()?;
    let how = answer.headers().get("cache-status").context("Cache-Status")?.to_str()?.to_owned();
    Ok((how, answer.bytes().await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn caches_are_not_shared_between_owners() -> Result<()> {
    let site = Site::start(0).await?;
    let redis = block_in_place(Redis::start)?;
    let (cache, hasty) = (redis.url(), ("SAFELIGHT_METADATA_CACHE_MS", "200"));
    let shared = ("SAFELIGHT_SHARED_CACHE_URL", &*cache);
    let _worker = block_in_place(|| site.fleet.start_node(&["worker"], &[hasty, shared]))?;
    let (_chaos, endpoint) = site.link(Link::Slow(DELAY))?;
    let slow = ("AWS_ENDPOINT", &*endpoint);
    let folders = [folder()?, folder()?, folder()?];
    let nodes = [
        ("memory", site.node(folders[0].path(), &[hasty, slow, NO_DISK])?),
        ("disk", site.node(folders[1].path(), &[hasty, slow, NO_MEMORY])?),
        ("shared", site.node(folders[2].path(), &[hasty, slow, shared, NO_MEMORY, NO_DISK])?),
    ];
    let picture = pictures::jpeg(320, 240, 1)?;
    let ada = Holder::new(&site, "ada", &picture).await?;
    let bob = Holder::new(&site, "bob", &picture).await?;

    for (tier, node) in &nodes {
        let client = Client::new(node.url())?;
        let hit = format!("safelight; hit; detail={tier}");
        // Some of what one owner has is equal, too: those are one object, and read once.
        let mut known: Vec<Bytes> = Vec::new();
        for (hers, his) in ada.paths()?.into_iter().zip(bob.paths()?) {
            // It may be kept after the answer has gone out.
            eventually("hers is at hand", async || Ok(read(&client, hers).await?.0 == hit)).await?;
            let (_, content) = read(&client, hers).await?;
            let (how, first) = read(&client, his).await?;
            ensure!(first == content, "{his} has other bytes than {hers}");
            if known.contains(&content) {
                continue;
            }
            ensure!(how == "safelight; fwd=uri-miss; stored; detail=store", "{tier}: {how}");
            eventually("his is at hand", async || Ok(read(&client, his).await?.0 == hit)).await?;
            known.push(content);
        }
    }
    let both = redis.keys()?;

    let deletion = ada.client.delete_image(text(&ada.image["id"])?).await?;
    let done = ada.client.finished(&deletion).await?;
    ensure!(done["status"] == "succeeded", "{done:#}");
    ensure!(
        redis.keys()? * 2 == both,
        "{} of {both}: hers are gone, and his are not",
        redis.keys()?
    );
    let kept = || -> Result<usize> { Ok(files_with(folders[1].path(), &picture)?.len()) };
    ensure!(kept()? == 2, "one for each");
    for (tier, node) in &nodes {
        let client = Client::new(node.url())?;
        ensure!(client.get(ada.paths()?[0]).await?.status() == StatusCode::GONE);
        for path in bob.paths()? {
            let (how, _) = read(&client, path).await?;
            ensure!(how == format!("safelight; hit; detail={tier}"), "{how}");
        }
    }
    eventually("her file is gone", async || Ok(kept()? == 1)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn single_flight_is_per_owner() -> Result<()> {
    let site = Site::start(1).await?;
    let picture = pictures::jpeg(320, 240, 1)?;
    let ada = Holder::new(&site, "ada", &picture).await?;
    let bob = Holder::new(&site, "bob", &picture).await?;
    let (_chaos, endpoint) = site.link(Link::Slow(DELAY * 10))?;
    let data = folder()?;
    let node = site.node(data.path(), &[("AWS_ENDPOINT", &*endpoint), NO_MEMORY, NO_DISK])?;
    let client = Client::new(node.url())?;
    let (hers, his) = (text(&ada.image["url"])?, text(&bob.image["url"])?);
    let (one, other, third) =
        tokio::join!(read(&client, hers), read(&client, his), read(&client, his));
    ensure!(!one?.0.contains("collapsed"), "she joined his");
    let his = [other?.0, third?.0];
    let joined = his.iter().filter(|how| how.contains("collapsed")).count();
    ensure!(joined == 1, "his own are joined, and no other: {his:?}");
    Ok(())
}
