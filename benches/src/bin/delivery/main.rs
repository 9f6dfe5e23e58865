//! `make bench-delivery`: the rate of reads compared with nginx and the same files in the same run; how
//! many reads of the store concurrent requests cause; whether memory stays bounded; the cost of a cold read
//! with each tier.
//!
//! Everything shares the machine: clients, servers and engines. Compare ratios, not rates.

mod cold;
mod collapse;
mod memory;
mod pictures;
mod statics;
mod wrk;

use std::{path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use safelight_testing::{
    chaos::{Chaos, Link},
    fleet::{Engines, Fleet, Plan},
    s3::S3,
    server::{Server, find_binary},
};
use tempfile::TempDir;

/// Measures the delivery of bytes.
#[derive(Parser)]
struct Options {
    /// The safelight binary (default: the one in the directory of this program)
    #[arg(long)]
    binary: Option<PathBuf>,
    /// What to measure
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "rendition,set,conditional,original,collapse,memory,cold"
    )]
    only: Vec<Part>,
    /// Concurrent connections for the comparison with nginx
    #[arg(long, value_delimiter = ',', default_value = "64,256")]
    connections: Vec<usize>,
    /// Seconds per measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Measurements of each; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds by which a distant store delays each response
    #[arg(long, default_value_t = 50)]
    delay_ms: u64,
    /// Objects for cold reads
    #[arg(long, default_value_t = 200)]
    reads: usize,
    /// Concurrent requests for one cold object
    #[arg(long = "herd", default_value_t = 2000)]
    concurrent_requests: usize,
    /// Originals of 2 MB for the memory part
    #[arg(long, default_value_t = 2000)]
    originals: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One rendition of 11 KB, compared with nginx
    Rendition,
    /// A hundred renditions in turn, compared with nginx
    Set,
    /// Conditional requests for one rendition, compared with nginx
    Conditional,
    /// An original of 5 MB, compared with nginx
    Original,
    /// Concurrent requests for one cold object
    Collapse,
    /// Memory of a node whose working set is larger than its cache
    Memory,
    /// First and second reads with a distant store, by tier
    Cold,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let binary = find_binary(options.binary.as_deref())?;
    safelight_client::install_crypto_provider();
    let setup = Setup { binary, options };
    statics::run(&setup).await?;
    if setup.wants(Part::Collapse) {
        collapse::run(&setup).await?;
    }
    if setup.wants(Part::Cold) {
        cold::run(&setup).await?;
    }
    if setup.wants(Part::Memory) {
        memory::run(&setup).await?;
    }
    Ok(())
}

/// The binary and the options.
struct Setup {
    binary: PathBuf,
    options: Options,
}

impl Setup {
    fn wants(&self, part: Part) -> bool {
        self.options.only.contains(&part)
    }

    /// An api node and a worker with their own database, virtual host and object store.
    async fn fleet(&self, env: &[(&str, &str)]) -> Result<Fleet> {
        let engines = Engines::shared().await?;
        let mut all = vec![("SAFELIGHT_LOG".to_owned(), "warn".to_owned())];
        all.extend(env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let (binary, plan) = (self.binary.clone(), Plan { apis: 1, workers: 1, env: all });
        tokio::task::spawn_blocking(move || Fleet::start(&binary, &engines, &plan)).await?
    }

    /// A proxy that makes the store distant, and its URL.
    fn distant(&self, s3: &S3) -> Result<(Chaos, String)> {
        let endpoint = s3.endpoint();
        let (_, port) = endpoint.rsplit_once(':').unwrap_or_default();
        let chaos = Chaos::start(port.parse()?)?;
        chaos.set(Link::Slow(Duration::from_millis(self.options.delay_ms)));
        let url = format!("http://127.0.0.1:{}", chaos.port());
        Ok((chaos, url))
    }
}

/// A delivery node with its own folder and empty caches.
struct Node {
    server: Server,
    _data: TempDir,
}

impl Node {
    /// Starts a node on the engines of `fleet`, with additional variables.
    fn start(fleet: &Fleet, env: &[(&str, &str)]) -> Result<Self> {
        let data = TempDir::new()?;
        let folder = data.path().to_string_lossy();
        let mut all = vec![("SAFELIGHT_DATA_DIR", &*folder)];
        all.extend_from_slice(env);
        let start = || fleet.start_node(&["api", "--only", "delivery"], &all);
        let server = tokio::task::block_in_place(start)?;
        Ok(Self { server, _data: data })
    }

    fn url(&self) -> &str {
        self.server.url()
    }
}
