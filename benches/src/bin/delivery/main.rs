//! `make bench-delivery`: how fast bytes are read, beside nginx with the same files in the same run;
//! how many reads of the store a crowd costs; whether memory stays bounded; what a cold read costs
//! with each tier.
//!
//! Everything shares the machine: clients, servers, engines. Read the ratios, not the rates.

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
    /// The safelight binary; the one beside this program unless said
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
    /// Connections at once, for what is measured beside nginx
    #[arg(long, value_delimiter = ',', default_value = "64,256")]
    connections: Vec<usize>,
    /// Seconds per measurement
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Measurements of each; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Milliseconds that the store adds to each answer, where it is far away
    #[arg(long, default_value_t = 50)]
    delay_ms: u64,
    /// Objects read in turn, for cold reads
    #[arg(long, default_value_t = 200)]
    reads: usize,
    /// Requests for one cold object at once
    #[arg(long, default_value_t = 2000)]
    herd: usize,
    /// Originals of 2 MB that are read at random, for memory
    #[arg(long, default_value_t = 2000)]
    originals: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// One rendition of 11 KB, beside nginx
    Rendition,
    /// A hundred of them in turn, beside nginx
    Set,
    /// One that the client has already, beside nginx
    Conditional,
    /// An original of 5 MB, beside nginx
    Original,
    /// A crowd that asks for one cold object
    Collapse,
    /// Memory of a node whose working set is larger than its cache
    Memory,
    /// First and second reads from a store that is far away, by tier
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

/// What every part needs.
struct Setup {
    binary: PathBuf,
    options: Options,
}

impl Setup {
    fn wants(&self, part: Part) -> bool {
        self.options.only.contains(&part)
    }

    /// An api node and a worker on a database, a virtual host and an object store of their own.
    async fn fleet(&self, env: &[(&str, &str)]) -> Result<Fleet> {
        let engines = Engines::shared().await?;
        let mut all = vec![("SAFELIGHT_LOG".to_owned(), "warn".to_owned())];
        all.extend(env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        let (binary, plan) = (self.binary.clone(), Plan { apis: 1, workers: 1, env: all });
        tokio::task::spawn_blocking(move || Fleet::start(&binary, &engines, &plan)).await?
    }

    /// The way to a store that is far away.
    fn far(&self, s3: &S3) -> Result<(Chaos, String)> {
        let endpoint = s3.endpoint();
        let (_, port) = endpoint.rsplit_once(':').unwrap_or_default();
        let chaos = Chaos::start(port.parse()?)?;
        chaos.set(Link::Slow(Duration::from_millis(self.options.delay_ms)));
        let url = format!("http://127.0.0.1:{}", chaos.port());
        Ok((chaos, url))
    }
}

/// A delivery node with a folder of its own, and nothing cached.
struct Node {
    server: Server,
    _data: TempDir,
}

impl Node {
    /// Starts one over the engines of `fleet`, with further variables.
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
