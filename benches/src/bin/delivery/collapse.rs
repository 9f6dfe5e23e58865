//! Many concurrent requests for one cold object.

use anyhow::{Result, ensure};
use safelight_testing::{
    client::Client,
    concurrent_requests::{self, Response},
    metrics::Metrics,
    percentiles::percentile_ms,
    redis::Redis,
};
use tokio::task::block_in_place;

use crate::{Node, Setup, pictures};

/// Measures one process, and two processes with a shared cache.
pub async fn run(setup: &Setup) -> Result<()> {
    let fleet = setup.fleet(&[("SAFELIGHT_PRESETS", pictures::PRESETS)]).await?;
    let images = pictures::upload(&Client::new(&fleet.url())?, 2, pictures::photo).await?;
    let paths = pictures::renditions(&images)?;
    let (_chaos, endpoint) = setup.distant(&fleet.s3)?;
    let (count, delay) = (setup.options.concurrent_requests, setup.options.delay_ms);
    println!("\n{count} concurrent requests for one cold object, the store delayed by {delay} ms");
    println!("  {:<34}{:>12}{:>10}{:>10}", "", "store reads", "p50 ms", "p99 ms");

    let node = Node::start(&fleet, &[("AWS_ENDPOINT", &endpoint)])?;
    measure("one process", &[&node], &paths[0], count).await?;

    let redis = block_in_place(Redis::start)?;
    let url = redis.url();
    let shared = [("AWS_ENDPOINT", &*endpoint), ("SAFELIGHT_SHARED_CACHE_URL", &*url)];
    let two = [Node::start(&fleet, &shared)?, Node::start(&fleet, &shared)?];
    measure("two processes with a shared tier", &[&two[0], &two[1]], &paths[1], count).await
}

/// Sends `count` requests, spread over `nodes`; prints a row.
async fn measure(title: &str, nodes: &[&Node], path: &str, count: usize) -> Result<()> {
    let before = count_reads(nodes).await?;
    let servers: Vec<_> = nodes.iter().map(|node| node.url()).cycle().take(count).collect();
    let responses = concurrent_requests::get(&servers, path).await?;
    let reads = count_reads(nodes).await? - before;
    let failed = responses.iter().find(|response| response.status != 200);
    ensure!(failed.is_none(), "{:?}", failed.map(|response| &response.head));
    ensure!(have_equal_bodies(&responses), "the responses differ");
    let times: Vec<_> = responses.iter().map(|response| response.took).collect();
    let (p50, p99) = (percentile_ms(&times, 50), percentile_ms(&times, 99));
    println!("  {title:<34}{reads:>12}{p50:>10.0}{p99:>10.0}");
    Ok(())
}

fn have_equal_bodies(responses: &[Response]) -> bool {
    responses.windows(2).all(|pair| pair[0].body == pair[1].body)
}

async fn count_reads(nodes: &[&Node]) -> Result<f64> {
    let mut sum = 0.0;
    for node in nodes {
        sum += Metrics::of(&Client::new(node.url())?).await?.blob_reads();
    }
    Ok(sum)
}
