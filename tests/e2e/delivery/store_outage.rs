//! Delivery nodes whose object store hangs.

use std::time::{Duration, Instant};

use anyhow::Result;
use reqwest::{StatusCode, header::RETRY_AFTER};
use safelight_testing::{chaos::Link, client::Client, process::free_port, server::Server};
use tokio::task::block_in_place;

use super::{DeliverySetup, LIMIT, eventually, folder};

/// Shorter than the timeout of any proxy in front.
const RESPONSE_LIMIT: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn uncached_read_fails_fast_when_store_hangs() -> Result<()> {
    let setup = DeliverySetup::start(1).await?;
    let expected = setup.upload(1).await?;
    let (chaos, endpoint) = setup.link(Link::Up)?;
    let data = folder()?;
    let node = setup.node(data.path(), &[("AWS_ENDPOINT", &*endpoint)])?;
    let client = Client::new(node.url())?;
    let ((cold, _), (warm, content)) = (&expected[0], &expected[1]);
    assert_eq!(client.bytes(warm).await?, *content);
    chaos.set(Link::BlackHole);
    let started_at = Instant::now();
    let rejected = client.get(cold).await?;
    assert!(started_at.elapsed() < RESPONSE_LIMIT, "{:?}", started_at.elapsed());
    assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(rejected.headers().contains_key(RETRY_AFTER));
    assert_eq!(client.bytes(warm).await?, *content);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn starting_node_is_live_while_store_hangs() -> Result<()> {
    let setup = DeliverySetup::start(0).await?;
    let (_chaos, endpoint) = setup.link(Link::BlackHole)?;
    let (data, address) = (folder()?, format!("127.0.0.1:{}", free_port()?));
    let mut command = setup.fleet.command(&["api", "--only", "delivery"]);
    command.env("SAFELIGHT_DATA_DIR", data.path()).env("SAFELIGHT_LISTEN", &address);
    command.env("AWS_ENDPOINT", &endpoint);
    let mut node = block_in_place(|| Server::spawn(command))?;
    let client = Client::new(&format!("http://{address}"))?;
    eventually("/livez answers 200", async || {
        Ok(client.get("/livez").await.is_ok_and(|answer| answer.status() == StatusCode::OK))
    })
    .await?;
    let rejected = client.get("/readyz").await?;
    assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(rejected.headers().contains_key(RETRY_AFTER));
    // Startup fails with an error that names the store.
    let ended = block_in_place(|| node.wait(LIMIT))?;
    assert_eq!(ended.code(), Some(1), "{}", node.output());
    assert!(node.output().contains("blob store"), "{}", node.output());
    Ok(())
}
