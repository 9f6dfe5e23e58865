//! The tiers of the cache, each alone.

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
    DELAY, LIMIT, NO_DISK, NO_MEMORY, Site, blob_reads, eventually, folder, metrics, read_all, same,
};

/// Clients that ask two nodes at once.
const CROWD: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_reads_hit_the_store_once_per_process() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(1).await?;
    let (_chaos, endpoint) = site.link(Link::Slow(DELAY))?;
    let data = folder()?;
    // Without any tier: it is the waiting together that counts.
    let env = [("AWS_ENDPOINT", &*endpoint), NO_MEMORY, NO_DISK];
    let node = site.node(data.path(), &env)?;
    let (path, content) = &expected[0];
    let answers = concurrent_requests::get(&[node.url(); CROWD], path).await?;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == *content));
    let reads = blob_reads(&[&node]).await?;
    assert!(same(reads, 1.0), "{reads} reads of the store");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_reads_on_two_nodes_hit_the_store_once() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(1).await?;
    let (_chaos, endpoint) = site.link(Link::Slow(DELAY))?;
    let redis = block_in_place(Redis::start)?;
    let url = redis.url();
    let env = [("AWS_ENDPOINT", &*endpoint), ("SAFELIGHT_SHARED_CACHE_URL", &*url)];
    let folders = [folder()?, folder()?];
    let nodes = [site.node(folders[0].path(), &env)?, site.node(folders[1].path(), &env)?];
    let both = [&nodes[0], &nodes[1]];
    for (path, content) in &expected {
        let before = blob_reads(&both).await?;
        let servers: Vec<_> = both.map(Server::url).into_iter().cycle().take(CROWD).collect();
        let answers = concurrent_requests::get(&servers, path).await?;
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == *content));
        let reads = blob_reads(&both).await? - before;
        assert!(same(reads, 1.0), "{reads} reads of the store for {path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_tier_that_freezes_or_dies_fails_no_read_and_is_used_again() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(4).await?;
    let mut redis = block_in_place(Redis::start)?;
    let url = redis.url();
    let data = folder()?;
    let env = [("SAFELIGHT_SHARED_CACHE_URL", &*url), NO_MEMORY, NO_DISK];
    let node = site.node(data.path(), &env)?;

    let reads = Reads::start(4, node.url(), &expected)?;
    is_used(&node).await?;
    redis.stop()?;
    reads.wait_for_more(100).await?;
    redis.resume()?;
    is_used(&node).await?;
    block_in_place(|| redis.kill())?;
    reads.wait_for_more(100).await?;
    block_in_place(|| redis.start_again())?;
    is_used(&node).await?;
    reads.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_slow_is_read_once_over_two_nodes() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(1).await?;
    let (chaos, endpoint) = site.link(Link::Up)?;
    let redis = block_in_place(Redis::start)?;
    let url = redis.url();
    let env = [("AWS_ENDPOINT", &*endpoint), ("SAFELIGHT_SHARED_CACHE_URL", &*url)];
    let folders = [folder()?, folder()?];
    let nodes = [site.node(folders[0].path(), &env)?, site.node(folders[1].path(), &env)?];
    // Longer than a turn lasts that is not renewed.
    chaos.set(Link::Slow(Duration::from_millis(3500)));
    let (path, content) = &expected[0];
    let answers = concurrent_requests::get(&[nodes[0].url(), nodes[1].url()], path).await?;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == *content));
    let reads = blob_reads(&[&nodes[0], &nodes[1]]).await?;
    assert!(same(reads, 1.0), "{reads} reads of the store");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_while_filling_delays_others_briefly() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(1).await?;
    let (chaos, endpoint) = site.link(Link::Up)?;
    let redis = block_in_place(Redis::start)?;
    let url = redis.url();
    let shared = ("SAFELIGHT_SHARED_CACHE_URL", &*url);
    let folders = [folder()?, folder()?];
    let mut dying = site.node(folders[0].path(), &[("AWS_ENDPOINT", &*endpoint), shared])?;
    let other = site.node(folders[1].path(), &[shared])?;
    chaos.set(Link::BlackHole);
    let (path, content) = &expected[0];
    let (client, asked) = (Client::new(dying.url())?, path.clone());
    let unanswered = tokio::spawn(async move { client.get(&asked).await });
    let turn = format!("EXISTS safelight:{{{}}}:turn", key(content));
    eventually("it has the turn", async || Ok(redis.ask(&turn)? == "1")).await?;
    block_in_place(|| dying.kill())?;
    assert!(unanswered.await?.is_err());

    let begun = Instant::now();
    assert_eq!(Client::new(other.url())?.bytes(path).await?, *content);
    assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
    assert_eq!(redis.ask(&turn)?, "0", "the turn was ended by whoever had it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_redis_types_do_not_disable_the_shared_tier() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(1).await?;
    let redis = block_in_place(Redis::start)?;
    let url = redis.url();
    let data = folder()?;
    let node =
        site.node(data.path(), &[("SAFELIGHT_SHARED_CACHE_URL", &*url), NO_MEMORY, NO_DISK])?;
    for (_, content) in &expected {
        redis.ask(&format!("LPUSH safelight:{{{}}}:bytes odd", key(content)))?;
    }
    read_all(&node, &expected).await?;
    assert!(same(errors(&node, "shared").await?, 0.0), "the tier was taken for broken");
    read_all(&node, &expected).await?;
    let reads = blob_reads(&[&node]).await?;
    assert!(
        same(reads, f64::from(u32::try_from(expected.len())?)),
        "{reads} reads: the odd keys were not replaced"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_tier_that_hangs_fails_no_read_and_is_used_again() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(1).await?;
    let data = folder()?;
    let node = site.node(data.path(), &[NO_MEMORY])?;
    is_on_disk(&node, data.path(), &expected).await?;
    let mut files = Vec::new();
    for (_, content) in &expected {
        files.extend(files_with(data.path(), content)?);
    }
    for file in &files {
        fs::remove_file(file)?;
        // Whoever opens it waits for a writer, who never comes.
        ensure!(Command::new("mkfifo").arg(file).status()?.success(), "mkfifo");
    }
    let begun = Instant::now();
    read_all(&node, &expected).await?;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(errors(&node, "disk").await? > 0.5, "it was never asked");
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

/// By what the shared tier knows what was uploaded without a key.
fn key(content: &[u8]) -> CacheKey {
    CacheKey::of(&Owner::local(), &ContentHash::of(content))
}

/// How often a tier has failed.
async fn errors(node: &Server, tier: &str) -> Result<f64> {
    let labels = [("tier", tier), ("result", "error")];
    Ok(metrics(node).await?.sum(CACHE_REQUESTS, &labels))
}

/// Waits until the shared tier has had something that it was asked for from now on.
async fn is_used(node: &Server) -> Result<()> {
    let before = metrics(node).await?.hits("shared");
    eventually("the shared tier is used", async || {
        Ok(metrics(node).await?.hits("shared") > before + 0.5)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_redis_servers_is_a_shared_tier() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(6).await?;
    let cluster = block_in_place(RedisCluster::start)?;
    let url = cluster.url();
    let data = folder()?;
    let env = [("SAFELIGHT_SHARED_CACHE_URL", &*url), NO_MEMORY, NO_DISK];
    let node = site.node(data.path(), &env)?;
    let client = Client::new(node.url())?;
    for (path, content) in &expected {
        // Read until it comes from the tier: it may be written after the answer has gone out.
        let before = metrics(&node).await?.hits("shared");
        eventually("it comes from the shared tier", async || {
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
async fn the_disk_tier_outlives_its_process() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(4).await?;
    let data = folder()?;
    let mut node = site.node(data.path(), &[NO_MEMORY])?;
    is_on_disk(&node, data.path(), &expected).await?;
    stop(&mut node)?;
    let mut node = site.node(data.path(), &[NO_MEMORY])?;
    read_all(&node, &expected).await?;
    let reads = blob_reads(&[&node]).await?;
    assert!(same(reads, 0.0), "{reads} reads of the store after the restart");
    // Not even a crash costs more than what was being written.
    block_in_place(|| node.kill())?;
    let node = site.node(data.path(), &[NO_MEMORY])?;
    read_all(&node, &expected).await?;
    let reads = blob_reads(&[&node]).await?;
    assert!(same(reads, 0.0), "{reads} reads of the store after the crash");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_of_the_disk_tier_is_not_served() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(1).await?;
    let data = folder()?;
    let mut node = site.node(data.path(), &[NO_MEMORY])?;
    is_on_disk(&node, data.path(), &expected).await?;
    stop(&mut node)?;
    for (_, content) in &expected {
        for file in files_with(data.path(), content)? {
            let mut bytes = fs::read(&file)?;
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&file, bytes)?;
        }
    }
    let node = site.node(data.path(), &[NO_MEMORY])?;
    read_all(&node, &expected).await?;
    let reads = blob_reads(&[&node]).await?;
    assert!(reads > 0.5, "whence came the right bytes?");
    Ok(())
}

/// Reads everything, until a file holds each of it.
async fn is_on_disk(node: &Server, data: &Path, expected: &[(String, Bytes)]) -> Result<()> {
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

/// The files below a folder that hold `content`, perhaps among other things.
pub fn files_with(folder: &Path, content: &[u8]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files_with(&entry.path(), content)?);
        } else if let Ok(bytes) = fs::read(entry.path()) {
            // A file may be renamed between the two.
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
