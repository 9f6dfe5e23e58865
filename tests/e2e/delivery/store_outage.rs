//! A delivery node whose store hangs.

use std::time::{Duration, Instant};

use anyhow::Result;
use reqwest::{StatusCode, header::RETRY_AFTER};
use safelight_testing::{chaos::Link, client::Client, process::free_port, server::Server};
use tokio::task::block_in_place;

use super::{LIMIT, Site, eventually, folder};

/// Less than any time-out that a proxy in front might have.
const SOON: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn uncached_read_fails_fast_when_store_hangs() -> Result<()> {
    let site = Site::start(1).await?;
    let expected = site.upload(1).await?;
    let (chaos, endpoint) = site.link(Link::Up)?;
    let data = folder()?;
    let node = site.node(data.path(), &[("AWS_ENDPOINT", &*endpoint)])?;
    let client = Client::new(node.url())?;
    let ((cold, _), (warm, content)) = (&expected[0], &expected[1]);
    assert_eq!(client.bytes(warm).await?, *content);
    chaos.set(Link::BlackHole);
    let begun = Instant::now();
    let refused = client.get(cold).await?;
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key(RETRY_AFTER));
    assert_eq!(client.bytes(warm).await?, *content);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn starting_node_is_live_while_store_hangs() -> Result<()> {
    let site = Site::start(0).await?;
    let (_chaos, endpoint) = site.link(Link::BlackHole)?;
    let (data, address) = (folder()?, format!("127.0.0.1:{}", free_port()?));
    let mut command = site.fleet.command(&["api", "--only", "delivery"]);
    command.env("SAFELIGHT_DATA_DIR", data.path()).env("SAFELIGHT_LISTEN", &address);
    command.env("AWS_ENDPOINT", &endpoint);
    let mut node = block_in_place(|| Server::spawn(command))?;
    let client = Client::new(&format!("http://{address}"))?;
    eventually("it says that it lives", async || {
        Ok(client.get("/livez").await.is_ok_and(|answer| answer.status() == StatusCode::OK))
    })
    .await?;
    let refused = client.get("/readyz").await?;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key(RETRY_AFTER));
    // It gives up soon, and says why.
    let ended = block_in_place(|| node.wait(LIMIT))?;
    assert_eq!(ended.code(), Some(1), "{}", node.output());
    assert!(node.output().contains("blob store"), "{}", node.output());
    Ok(())
}
