//! Two delivery nodes behind HAProxy.

use anyhow::Result;
use reqwest::StatusCode;
use safelight_testing::{client::Client, haproxy::HaProxy, reads::Reads};
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::{LIMIT, Site, eventually, folder, read_all, status};

/// Clients that read.
const CLIENTS: usize = 16;

/// Reads before, and after, something happens: each node is asked many times.
const SOME: usize = 400;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_delivery_node_fails_no_read() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(4).await?;
    let folders = [folder()?, folder()?];
    let mut victim = site.node(folders[0].path(), &[])?;
    let other = site.node(folders[1].path(), &[])?;
    let balancer = block_in_place(|| HaProxy::start(&[victim.url(), other.url()]))?;

    let reads = Reads::start(CLIENTS, &balancer.url(), &expected)?;
    reads.wait_for_more(SOME).await?;
    block_in_place(|| victim.kill())?;
    reads.wait_for_more(SOME).await?;
    reads.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_delivery_node_fails_no_read() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(4).await?;
    let folders = [folder()?, folder()?];
    let mut leaving = site.node(folders[0].path(), &[])?;
    let other = site.node(folders[1].path(), &[])?;
    let balancer = block_in_place(|| HaProxy::start(&[leaving.url(), other.url()]))?;

    let reads = Reads::start(CLIENTS, &balancer.url(), &expected)?;
    reads.wait_for_more(SOME).await?;
    leaving.signal("TERM")?;
    let ended = block_in_place(|| leaving.wait(LIMIT))?;
    assert_eq!(ended.code(), Some(0), "{}", leaving.output());
    reads.wait_for_more(SOME).await?;
    reads.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_images_are_served_while_the_object_store_is_unavailable() -> Result<()> {
    let mut site = Site::start(1).await?;
    let expected = site.upload(2).await?;
    // Such as answer both halves: they say that they are not ready, and nobody is.
    let folders = [folder()?, folder()?];
    let start = |data: &TempDir| {
        let folder = data.path().to_string_lossy();
        let env = [("SAFELIGHT_DATA_DIR", &*folder)];
        block_in_place(|| site.fleet.start_node(&["api"], &env))
    };
    let nodes = [start(&folders[0])?, start(&folders[1])?];
    let (cached, cold) = expected.split_at(expected.len() - 1);
    for node in &nodes {
        read_all(node, cached).await?;
    }
    let balancer = block_in_place(|| HaProxy::start(&[nodes[0].url(), nodes[1].url()]))?;

    let reads = Reads::start(CLIENTS, &balancer.url(), cached)?;
    reads.wait_for_more(SOME).await?;
    block_in_place(|| site.fleet.s3.stop());
    for node in &nodes {
        eventually("the node says that it is not ready", async || {
            Ok(status(node.url(), "/readyz").await? == StatusCode::SERVICE_UNAVAILABLE)
        })
        .await?;
    }
    // Past the balancer's own finding out: it answers 503 for what needs a node that is ready.
    eventually("the balancer has noticed", async || {
        Ok(status(&balancer.url(), "/livez").await? == StatusCode::SERVICE_UNAVAILABLE)
    })
    .await?;
    reads.wait_for_more(SOME).await?;
    reads.stop().await?;
    let (path, content) = &cold[0];
    let refused = Client::new(&balancer.url())?.get(path).await?;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["cache-control"], "no-store");
    assert!(refused.headers().contains_key("retry-after"));

    site.fleet.s3.resume()?;
    eventually("the rest is served again", async || {
        let answer = Client::new(&balancer.url())?.get(path).await?;
        Ok(answer.status() == StatusCode::OK && answer.bytes().await? == *content)
    })
    .await
}
