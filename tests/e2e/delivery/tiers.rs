//! The tiers of the cache, one by one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use safelight_domain::{CacheKey, ContentHash, Owner};
use safelight_testing::{
    chaos::Link,
    client::Client,
    concurrent_requests,
    metrics::CACHE_REQUESTS,
    reads::Reads,
    redis::{Redis, RedisCluster},
    server::Server,
};
use tokio::task::block_in_place;

use super::{
    DELAY, DeliverySetup, LIMIT, NO_DISK, NO_MEMORY, blob_reads, eventually, folder, metrics,
    read_all, same,
};

/// Concurrent clients.
const CLIENTS: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_reads_hit_the_store_once_per_process() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(1).await?;
    let (_chaos, endpoint) = setup.link(Link::Slow(DELAY))?;
    let data = folder()?;
    // No tier is on, so only single flight can reduce the reads.
    let env = [("AWS_ENDPOINT", &*endpoint), NO_MEMORY, NO_DISK];
    let node = setup.node(data.path(), &env)?;
    let (path, content) = &expected[0];
    let answers = concurrent_requests::get(&[node.url(); CLIENTS], path).await?;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == *content));
    let reads = blob_reads(&[&node]).await?;
    assert!(same(reads, 1.0), "{reads} reads of the store");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_reads_on_two_nodes_hit_the_store_once() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(1).await?;
    let (_chaos, endpoint) = setup.link(Link::Slow(DELAY))?;
    let redis = block_in_place(Redis::start)?;
    let url = redis.url();
    let env = [("AWS_ENDPOINT", &*endpoint), ("SAFELIGHT_SHARED_CACHE_URL", &*url)];
    let folders = [folder()?, folder()?];
    let nodes = [setup.node(folders[0].path(), &env)?, setup.node(folders[1].path(), &env)?];
    let both = [&nodes[0], &nodes[1]];
    for (path, content) in &expected {
        let before = blob_reads(&both).await?;
        let servers: Vec<_> = both.map(Server::url).into_iter().cycle().take(CLIENTS).collect();
        let answers = concurrent_requests::get(&servers, path).await?;
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == *content));
        let reads = blob_reads(&both).await? - before;
        assert!(same(reads, 1.0), "{reads} reads of the store for {path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_cache_outage_fails_no_read() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(4).await?;
    let mut redis = block_in_place(Redis::start)?;
    let url = redis.url();
    let data = folder()?;
    let env = [("SAFELIGHT_SHARED_CACHE_URL", &*url), NO_MEMORY, NO_DISK];
    let node = setup.node(data.path(), &env)?;

    let reads = Reads::start(4, node.url(), &expected)?;
    wait_for_shared_cache_hit(&node).await?;
    redis.stop()?;
    reads.wait_for_more(100).await?;
    redis.resume()?;
    wait_for_shared_cache_hit(&node).await?;
    block_in_place(|| redis.kill())?;
    reads.wait_for_more(100).await?;
    block_in_place(|| redis.start_again())?;
    wait_for_shared_cache_hit(&node).await?;
    reads.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_read_slow_store_once() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(1).await?;
    let (chaos, endpoint) = setup.link(Link::Up)?;
    let redis = block_in_place(Redis::start)?;
    let url = redis.url();
    let env = [("AWS_ENDPOINT", &*endpoint), ("SAFELIGHT_SHARED_CACHE_URL", &*url)];
    let folders = [folder()?, folder()?];
    let nodes = [setup.node(folders[0].path(), &env)?, setup.node(folders[1].path(), &env)?];
    // Longer than an unrenewed fill lock (the key `turn` in Redis) lasts.
    chaos.set(Link::Slow(Duration::from_millis(3500)));
    let (path, content) = &expected[0];
    let answers = concurrent_requests::get(&[nodes[0].url(), nodes[1].url()], path).await?;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == *content));
    let reads = blob_reads(&[&nodes[0], &nodes[1]]).await?;
    assert!(same(reads, 1.0), "{reads} reads of the store");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn crash_while_filling_cache_delays_others_briefly() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(1).await?;
    let (chaos, endpoint) = setup.link(Link::Up)?;
    let redis = block_in_place(Redis::start)?;
    let url = redis.url();
    let shared = ("SAFELIGHT_SHARED_CACHE_URL", &*url);
    let folders = [folder()?, folder()?];
    let mut crashing = setup.node(folders[0].path(), &[("AWS_ENDPOINT", &*endpoint), shared])?;
    let other = setup.node(folders[1].path(), &[shared])?;
    chaos.set(Link::BlackHole);
    let (path, content) = &expected[0];
    let (client, requested_path) = (Client::new(crashing.url())?, path.clone());
    let unanswered = tokio::spawn(async move { client.get(&requested_path).await });
    let turn = format!("EXISTS safelight:{{{}}}:turn", cache_key(content));
    eventually("it holds the fill lock", async || Ok(redis.ask(&turn)? == "1")).await?;
    block_in_place(|| crashing.kill())?;
    assert!(unanswered.await?.is_err());

    let started_at = Instant::now();
    assert_eq!(Client::new(other.url())?.bytes(path).await?, *content);
    assert!(started_at.elapsed() < Duration::from_millis(2500), "{:?}", started_at.elapsed());
    assert_eq!(redis.ask(&turn)?, "0", "the fill lock was not released");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_redis_types_do_not_disable_shared_cache() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(1).await?;
    let redis = block_in_place(Redis::start)?;
    let url = redis.url();
    let data = folder()?;
    let node =
        setup.node(data.path(), &[("SAFELIGHT_SHARED_CACHE_URL", &*url), NO_MEMORY, NO_DISK])?;
    for (_, content) in &expected {
        redis.ask(&format!("LPUSH safelight:{{{}}}:bytes odd", cache_key(content)))?;
    }
    read_all(&node, &expected).await?;
    assert!(same(errors(&node, "shared").await?, 0.0), "wrong types count as errors");
    read_all(&node, &expected).await?;
    let reads = blob_reads(&[&node]).await?;
    assert!(
        same(reads, f64::from(u32::try_from(expected.len())?)),
        "{reads} reads: keys of the wrong type were not replaced"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_disk_cache_fails_no_read() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(1).await?;
    let data = folder()?;
    let node = setup.node(data.path(), &[NO_MEMORY])?;
    fill_disk_cache(&node, data.path(), &expected).await?;
    let mut files = Vec::new();
    for (_, content) in &expected {
        files.extend(files_with(data.path(), content)?);
    }
    for file in &files {
        fs::remove_file(file)?;
        // Opening a FIFO blocks until a writer opens it.
        ensure!(Command::new("mkfifo").arg(file).status()?.success(), "mkfifo");
    }
    let started_at = Instant::now();
    read_all(&node, &expected).await?;
    assert!(started_at.elapsed() < Duration::from_secs(10), "{:?}", started_at.elapsed());
    assert!(errors(&node, "disk").await? > 0.5, "the disk tier was not used");
    for file in &files {
        fs::remove_file(file)?;
    }
    let before = metrics(&node).await?.hits("disk");
    eventually("the disk tier is used again", async || {
        read_all(&node, &expected).await?;
        Ok(metrics(&node).await?.hits("disk") > before + 0.5)
    })
    .await
}

/// The cache key of content that was uploaded without an API key.
fn cache_key(content: &[u8]) -> CacheKey {
    CacheKey::of(&Owner::local(), &ContentHash::of(content))
}

/// How often a tier has failed.
async fn errors(node: &Server, tier: &str) -> Result<f64> {
    let labels = [("tier", tier), ("result", "error")];
    Ok(metrics(node).await?.sum(CACHE_REQUESTS, &labels))
}

/// Waits for another hit of the shared tier.
async fn wait_for_shared_cache_hit(node: &Server) -> Result<()> {
    let before = metrics(node).await?.hits("shared");
    eventually("the shared tier has a hit", async || {
        Ok(metrics(node).await?.hits("shared") > before + 0.5)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_cluster_works_as_shared_cache() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(6).await?;
    let cluster = block_in_place(RedisCluster::start)?;
    let url = cluster.url();
    let data = folder()?;
    let env = [("SAFELIGHT_SHARED_CACHE_URL", &*url), NO_MEMORY, NO_DISK];
    let node = setup.node(data.path(), &env)?;
    let client = Client::new(node.url())?;
    for (path, content) in &expected {
        // The node may fill the tier after it has answered, so read again until it is a hit.
        let before = metrics(&node).await?.hits("shared");
        eventually("the object comes from the shared tier", async || {
            ensure!(client.bytes(path).await? == *content, "{path} has other bytes");
            Ok(metrics(&node).await?.hits("shared") > before + 0.5)
        })
        .await?;
    }
    let keys = cluster.keys()?;
    assert!(keys.iter().all(|&count| count > 0), "not spread over the masters: {keys:?}");
    let before = blob_reads(&[&node]).await?;
    read_all(&node, &expected).await?;
    assert!(same(blob_reads(&[&node]).await?, before), "the store was read again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_cache_survives_restart_and_crash() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(4).await?;
    let data = folder()?;
    let mut node = setup.node(data.path(), &[NO_MEMORY])?;
    fill_disk_cache(&node, data.path(), &expected).await?;
    stop(&mut node)?;
    let mut node = setup.node(data.path(), &[NO_MEMORY])?;
    read_all(&node, &expected).await?;
    let reads = blob_reads(&[&node]).await?;
    assert!(same(reads, 0.0), "{reads} reads of the store after the restart");
    // A crash loses only the files that were being written.
    block_in_place(|| node.kill())?;
    let node = setup.node(data.path(), &[NO_MEMORY])?;
    read_all(&node, &expected).await?;
    let reads = blob_reads(&[&node]).await?;
    assert!(same(reads, 0.0), "{reads} reads of the store after the crash");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_disk_cache_file_is_not_served() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(1).await?;
    let data = folder()?;
    let mut node = setup.node(data.path(), &[NO_MEMORY])?;
    fill_disk_cache(&node, data.path(), &expected).await?;
    stop(&mut node)?;
    for (_, content) in &expected {
        for file in files_with(data.path(), content)? {
            let mut bytes = fs::read(&file)?;
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&file, bytes)?;
        }
    }
    let node = setup.node(data.path(), &[NO_MEMORY])?;
    read_all(&node, &expected).await?;
    let reads = blob_reads(&[&node]).await?;
    assert!(reads > 0.5, "a damaged file was not read from the store again");
    Ok(())
}

/// Reads everything, and waits until the disk tier has all of it.
async fn fill_disk_cache(node: &Server, data: &Path, expected: &[(String, Bytes)]) -> Result<()> {
    read_all(node, expected).await?;
    eventually("everything is in the disk tier", async || {
        for (_, content) in expected {
            if files_with(data, content)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await
}

/// The files below a folder that contain `content`.
pub fn files_with(folder: &Path, content: &[u8]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files_with(&entry.path(), content)?);
        } else if let Ok(bytes) = fs::read(entry.path()) {
            // Reading fails if the file has been renamed meanwhile.
            if bytes.windows(content.len()).any(|window| window == content) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

fn stop(node: &mut Server) -> Result<()> {
    node.signal("TERM")?;
    let ended = block_in_place(|| node.wait(LIMIT))?;
    ensure!(ended.code() == Some(0), "{}", node.output());
    Ok(())
}
