//! Reads from delivery nodes behind a load balancer and behind a caching proxy, through each tier of the
//! cache, and while any of these is unavailable.

mod balancer;
mod owners;
mod proxy;
mod repair;
mod store_outage;
mod tiers;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use reqwest::StatusCode;
use safelight_testing::{
    chaos::{Chaos, Link},
    client::{Client, TestClient as _},
    fleet::{Fleet, Plan},
    metrics::Metrics,
    pictures,
    server::Server,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::block_in_place;

use super::fleet;
use safelight_testing::wait::{LIMIT, eventually};

/// The delay of a slow object store.
const DELAY: Duration = Duration::from_millis(50);

/// Settings that turn off a tier.
const NO_MEMORY: (&str, &str) = ("SAFELIGHT_MEMORY_CACHE_BYTES", "0");
const NO_DISK: (&str, &str) = ("SAFELIGHT_DISK_CACHE_BYTES", "0");

/// An api node and workers. Tests add delivery nodes.
struct DeliverySetup {
    fleet: Fleet,
}

impl DeliverySetup {
    async fn start(workers: usize) -> Result<Self> {
        Ok(Self { fleet: fleet(Plan { apis: 1, workers, ..Plan::default() }).await? })
    }

    fn client(&self) -> Result<Client> {
        Ok(Client::new(self.fleet.apis[0].url())?)
    }

    /// Starts a delivery node on `data`.
    fn node(&self, data: &Path, env: &[(&str, &str)]) -> Result<Server> {
        let folder = data.to_string_lossy();
        let mut all = vec![("SAFELIGHT_DATA_DIR", &*folder)];
        all.extend_from_slice(env);
        block_in_place(|| self.fleet.start_node(&["api", "--only", "delivery"], &all))
    }

    /// A link to the object store that tests can slow down or cut, and the endpoint that uses it.
    fn link(&self, link: Link) -> Result<(Chaos, String)> {
        let endpoint = self.fleet.s3.endpoint();
        let (_, port) = endpoint.rsplit_once(':').context("a port")?;
        let chaos = Chaos::start(port.parse()?)?;
        chaos.set(link);
        let endpoint = format!("http://127.0.0.1:{}", chaos.port());
        Ok((chaos, endpoint))
    }

    /// Uploads `count` pictures. Returns the path and the content of each original and rendition, without
    /// duplicates.
    async fn upload(&self, count: usize) -> Result<Vec<(String, Bytes)>> {
        let client = self.client()?;
        let mut expected: Vec<(String, Bytes)> = Vec::new();
        for number in 0..count {
            let task = client.upload(pictures::jpeg(320, 240, u64::try_from(number)?)?).await?;
            let image = client.finished(&task).await?["image"].clone();
            let renditions = image["renditions"].as_object().context("renditions")?;
            for object in renditions.values().chain([&image]) {
                let path = text(&object["url"])?;
                let content = client.bytes(path).await?;
                // Pictures are not enlarged, so renditions may be equal. Equal objects share one cache entry.
                if expected.iter().all(|(_, known)| *known != content) {
                    expected.push((path.to_owned(), content));
                }
            }
        }
        Ok(expected)
    }
}

/// Reads everything once and compares it.
async fn read_all(node: &Server, expected: &[(String, Bytes)]) -> Result<()> {
    let client = Client::new(node.url())?;
    for (path, content) in expected {
        ensure!(client.bytes(path).await? == *content, "{path} has other bytes");
    }
    Ok(())
}

async fn metrics(node: &Server) -> Result<Metrics> {
    Metrics::of(&Client::new(node.url())?).await
}

/// How often nodes have read from the store.
async fn blob_reads(nodes: &[&Server]) -> Result<f64> {
    let mut sum = 0.0;
    for node in nodes {
        sum += metrics(node).await?.blob_reads();
    }
    Ok(sum)
}

/// Whether two counts are equal. Metrics are floating-point numbers.
fn same(one: f64, other: f64) -> bool {
    (one - other).abs() < 0.5
}

async fn status(url: &str, path: &str) -> Result<StatusCode> {
    Ok(Client::new(url)?.get(path).await?.status())
}

fn folder() -> Result<TempDir> {
    Ok(TempDir::new()?)
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("expected a string, found {value}"))
}
