//! The memory of a node that serves much more than fits into its cache.

use std::time::Duration;

use anyhow::Result;
use safelight_testing::{client::Client, metrics::Metrics, process::peak_mib};

use crate::{Node, Setup, pictures, wrk::Load};

/// The limit of the memory tier.
const CACHE_BYTES: u64 = 256 * 1024 * 1024;

/// Allowed memory in addition to the cache.
const OVERHEAD_MIB: u64 = 100;

/// The approximate size of each original.
const ORIGINAL_BYTES: usize = 2_000_000;

/// Concurrent connections.
const CONNECTIONS: usize = 64;

/// Reads originals at random, and prints the peak memory of the node.
pub async fn run(setup: &Setup) -> Result<()> {
    let count = setup.options.originals;
    println!(
        "\n{count} originals of 2 MB in an object store, read at random, {CONNECTIONS} connections"
    );
    let fleet = setup.fleet(&[("SAFELIGHT_PRESETS", "{ tiny = { size = 32 } }")]).await?;
    let client = Client::new(&fleet.url())?;
    let images = pictures::upload(&client, count, |n| pictures::padded(n, ORIGINAL_BYTES)).await?;
    let paths = pictures::originals(&images)?;
    let cache_bytes = CACHE_BYTES.to_string();
    let node = Node::start(
        &fleet,
        &[("SAFELIGHT_MEMORY_CACHE_BYTES", &cache_bytes), ("SAFELIGHT_DISK_CACHE_BYTES", "0")],
    )?;
    let before = peak_mib(node.server.id())?;
    let load = Load {
        connections: CONNECTIONS,
        duration: Duration::from_secs(setup.options.seconds * 4),
        paths: &paths,
        random: true,
        etag: None,
    };
    let run = load.run(node.url()).await?;
    let peak = peak_mib(node.server.id())?;
    let allowed = CACHE_BYTES / 1024 / 1024 + OVERHEAD_MIB;
    let hits = Metrics::of(&Client::new(node.url())?).await?.hits("memory");
    println!("  VmHWM {before} MiB before, {peak} MiB at its peak; allowed {allowed} MiB");
    println!("  {:.0} reads/s, {:.0} MB/s, {hits} from memory", run.rate, run.bytes / 1e6);
    Ok(())
}
