//! Two delivery nodes behind HAProxy.

use anyhow::Result;
use reqwest::StatusCode;
use safelight_testing::{client::Client, haproxy::HaProxy, reads::Reads};
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::{DeliverySetup, LIMIT, eventually, folder, read_all, status};

/// Concurrent clients.
const CLIENTS: usize = 16;

/// Reads before and after each fault. Each node gets many of them.
const READS: usize = 400;

#[tokio::test(flavor = "multi_thread")]
async fn killed_delivery_node_fails_no_read() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(4).await?;
    let folders = [folder()?, folder()?];
    let mut killed = setup.node(folders[0].path(), &[])?;
    let other = setup.node(folders[1].path(), &[])?;
    let balancer = block_in_place(|| HaProxy::start(&[killed.url(), other.url()]))?;

    let reads = Reads::start(CLIENTS, &balancer.url(), &expected)?;
    reads.wait_for_more(READS).await?;
    block_in_place(|| killed.kill())?;
    reads.wait_for_more(READS).await?;
    reads.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn drained_delivery_node_fails_no_read() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(4).await?;
    let folders = [folder()?, folder()?];
    let mut draining = setup.node(folders[0].path(), &[])?;
    let other = setup.node(folders[1].path(), &[])?;
    let balancer = block_in_place(|| HaProxy::start(&[draining.url(), other.url()]))?;

    let reads = Reads::start(CLIENTS, &balancer.url(), &expected)?;
    reads.wait_for_more(READS).await?;
    draining.signal("TERM")?;
    let ended = block_in_place(|| draining.wait(LIMIT))?;
    assert_eq!(ended.code(), Some(0), "{}", draining.output());
    reads.wait_for_more(READS).await?;
    reads.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_images_are_served_while_the_object_store_is_unavailable() -> Result<()> {
    let mut setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(2).await?;
    // Nodes that also serve the API report that they are not ready, so the balancer has no ready node.
    let folders = [folder()?, folder()?];
    let start = |data: &TempDir| {
        let folder = data.path().to_string_lossy();
        let env = [("SAFELIGHT_DATA_DIR", &*folder)];
        block_in_place(|| setup.fleet.start_node(&["api"], &env))
    };
    let nodes = [start(&folders[0])?, start(&folders[1])?];
    let (cached, cold) = expected.split_at(expected.len() - 1);
    for node in &nodes {
        read_all(node, cached).await?;
    }
    let balancer = block_in_place(|| HaProxy::start(&[nodes[0].url(), nodes[1].url()]))?;

    let reads = Reads::start(CLIENTS, &balancer.url(), cached)?;
    reads.wait_for_more(READS).await?;
    block_in_place(|| setup.fleet.s3.stop());
    for node in &nodes {
        eventually("the node is not ready", async || {
            Ok(status(node.url(), "/readyz").await? == StatusCode::SERVICE_UNAVAILABLE)
        })
        .await?;
    }
    eventually("the balancer has noticed", async || balancer.has_lost("delivery")).await?;
    reads.wait_for_more(READS).await?;
    reads.stop().await?;
    let (path, content) = &cold[0];
    let rejected = Client::new(&balancer.url())?.get(path).await?;
    assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(rejected.headers()["cache-control"], "no-store");
    assert!(rejected.headers().contains_key("retry-after"));

    setup.fleet.s3.resume()?;
    eventually("the rest is served again", async || {
        let answer = Client::new(&balancer.url())?.get(path).await?;
        Ok(answer.status() == StatusCode::OK && answer.bytes().await? == *content)
    })
    .await
}
