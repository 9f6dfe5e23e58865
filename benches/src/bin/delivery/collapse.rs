//! A crowd that asks for one cold object at once.

use anyhow::{Result, ensure};
use safelight_testing::{
    client::Client,
    herd::{self, Answer},
    metrics::Metrics,
    percentiles::percentile_ms,
    redis::Redis,
};
use tokio::task::block_in_place;

use crate::{Node, Setup, pictures};

/// Measures one process, and two that share a tier.
pub async fn run(setup: &Setup) -> Result<()> {
    let fleet = setup.fleet(&[("SAFELIGHT_PRESETS", pictures::PRESETS)]).await?;
    let images = pictures::upload(&Client::new(&fleet.url())?, 2, pictures::photo).await?;
    let paths = pictures::renditions(&images)?;
    let (_chaos, endpoint) = setup.far(&fleet.s3)?;
    let (herd, delay) = (setup.options.herd, setup.options.delay_ms);
    println!("\n{herd} requests at once for one cold object, the store {delay} ms away");
    println!("  {:<34}{:>12}{:>10}{:>10}", "", "store reads", "p50 ms", "p99 ms");

    let alone = Node::start(&fleet, &[("AWS_ENDPOINT", &endpoint)])?;
    measure("one process", &[&alone], &paths[0], herd).await?;

    let redis = block_in_place(Redis::start)?;
    let url = redis.url();
    let shared = [("AWS_ENDPOINT", &*endpoint), ("SAFELIGHT_SHARED_CACHE_URL", &*url)];
    let two = [Node::start(&fleet, &shared)?, Node::start(&fleet, &shared)?];
    measure("two processes with a shared tier", &[&two[0], &two[1]], &paths[1], herd).await
}

/// Spreads the herd over `nodes`; fails unless the object was read from the store once.
async fn measure(title: &str, nodes: &[&Node], path: &str, herd: usize) -> Result<()> {
    let before = reads(nodes).await?;
    let servers: Vec<_> = nodes.iter().map(|node| node.url()).cycle().take(herd).collect();
    let answers = concurrent_requests::get(&servers, path).await?;
    let reads = reads(nodes).await? - before;
    let bad = answers.iter().find(|answer| answer.status != 200);
    ensure!(bad.is_none(), "{:?}", bad.map(|answer| &answer.head));
    ensure!(all_equal(&answers), "the answers differ");
    let times: Vec<_> = answers.iter().map(|answer| answer.took).collect();
    let (p50, p99) = (percentile_ms(&times, 50), percentile_ms(&times, 99));
    println!("  {title:<34}{reads:>12}{p50:>10.0}{p99:>10.0}");
    Ok(())
}

fn all_equal(answers: &[Answer]) -> bool {
    answers.windows(2).all(|two| two[0].body == two[1].body)
}

async fn reads(nodes: &[&Node]) -> Result<f64> {
    let mut sum = 0.0;
    for node in nodes {
        sum += Metrics::of(&Client::new(node.url())?).await?.blob_reads();
    }
    Ok(sum)
}
