//! Reads compared with nginx, which serves the same bytes from files.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{
    Method, StatusCode,
    header::{ETAG, IF_NONE_MATCH},
};
use safelight_testing::{
    client::Client,
    nginx::Nginx,
    percentiles::median,
    server::{Server, safelight},
};
use tempfile::TempDir;

use crate::{
    Part, Setup, pictures,
    wrk::{Load, Run},
};

/// Threads of each server: the number of cores of the machine of the published results.
const THREADS: usize = 2;

/// The number of renditions that are read in turn.
const RENDITIONS: usize = 100;

/// The approximate size of the original.
const ORIGINAL_BYTES: usize = 5_000_000;

/// Selects the compared value of a run.
type Figure = fn(&Run) -> f64;

/// Both servers with the same content.
struct Pair {
    ours: Server,
    nginx: Nginx,
    _data: TempDir,
    renditions: Vec<String>,
    originals: Vec<String>,
}

/// Prints a table for each selected part.
pub async fn run(setup: &Setup) -> Result<()> {
    let parts = [Part::Rendition, Part::Set, Part::Conditional, Part::Original];
    if !parts.iter().any(|&part| setup.wants(part)) {
        return Ok(());
    }
    let pair = Pair::start(setup).await?;
    println!(
        "\nCompared with nginx, {THREADS} threads each, the same bytes; medians of {} rounds of {} s",
        setup.options.rounds, setup.options.seconds
    );
    println!(
        "  {:<34}{:>6}  {:>10}{:>10}{:>7}  {:>8}{:>8}  {:>8}{:>8}{:>7}",
        "", "conns", "ours/s", "nginx/s", "ratio", "p50 ms", "nginx", "p99 ms", "nginx", "ratio"
    );
    let one = &pair.renditions[..1];
    if setup.wants(Part::Rendition) {
        pair.compare(setup, "one rendition", one, false, |run| run.rate).await?;
    }
    if setup.wants(Part::Set) {
        let all = &pair.renditions;
        pair.compare(setup, "100 renditions in turn", all, false, |run| run.rate).await?;
    }
    if setup.wants(Part::Conditional) {
        pair.compare(setup, "one rendition, 304", one, true, |run| run.rate).await?;
    }
    if setup.wants(Part::Original) {
        let original = &pair.originals;
        pair.compare(setup, "original of 5 MB, MB/s", original, false, |run| run.bytes / 1e6)
            .await?;
    }
    Ok(())
}

impl Pair {
    async fn start(setup: &Setup) -> Result<Self> {
        let data = TempDir::new()?;
        let env = [
            ("SAFELIGHT_DATA_DIR", &*data.path().to_string_lossy()),
            ("SAFELIGHT_LISTEN", "127.0.0.1:0"),
            ("SAFELIGHT_LOG", "warn"),
            ("SAFELIGHT_PRESETS", pictures::PRESETS),
            ("TOKIO_WORKER_THREADS", &THREADS.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let ours = Server::start(safelight(&setup.binary, ["serve"], &env))?;
        let nginx = Nginx::start(THREADS)?;
        let client = Client::new(ours.url())?;
        let images = pictures::upload(&client, RENDITIONS, pictures::photo).await?;
        let large = pictures::upload(&client, 1, |n| pictures::padded(n, ORIGINAL_BYTES)).await?;
        let (renditions, originals) =
            (pictures::renditions(&images)?, pictures::originals(&large)?);
        for path in renditions.iter().chain(&originals) {
            nginx.put(path.trim_start_matches('/'), &client.bytes(path).await?)?;
        }
        Ok(Self { ours, nginx, _data: data, renditions, originals })
    }

    /// Prints a row for each number of connections. The servers alternate in going first.
    async fn compare(
        &self,
        setup: &Setup,
        title: &str,
        paths: &[String],
        conditional: bool,
        figure: Figure,
    ) -> Result<()> {
        let nginx_url = self.nginx.url();
        let urls = [self.ours.url(), &nginx_url];
        let mut etags = [None, None];
        if conditional {
            for (url, etag) in urls.iter().zip(&mut etags) {
                *etag = Some(read_etag(url, &paths[0]).await?);
            }
        }
        for &connections in &setup.options.connections {
            let duration = Duration::from_secs(setup.options.seconds);
            let mut runs: [Vec<Run>; 2] = [Vec::new(), Vec::new()];
            for round in 0..setup.options.rounds {
                for server in [round % 2, (round + 1) % 2] {
                    let etag = etags[server].as_deref();
                    let load = Load { connections, duration, paths, random: false, etag };
                    runs[server].push(load.run(urls[server]).await?);
                }
            }
            print_row(title, connections, &runs, figure);
        }
        Ok(())
    }
}

/// Reads the `ETag` of a path, and checks that a conditional request with it gives a 304.
async fn read_etag(url: &str, path: &str) -> Result<String> {
    let client = Client::new(url)?;
    let response = client.get(path).await?.error_for_status()?;
    let etag = response.headers().get(ETAG).context("an ETag")?.clone();
    let again = client.request(Method::GET, path).header(IF_NONE_MATCH, &etag).send().await?;
    ensure!(again.status() == StatusCode::NOT_MODIFIED, "{url}: {}", again.status());
    Ok(etag.to_str()?.to_owned())
}

fn print_row(title: &str, connections: usize, [ours, nginx]: &[Vec<Run>; 2], figure: Figure) {
    let median_of = |runs: &[Run], figure: Figure| median(runs.iter().map(figure));
    // Ratios of neighboring runs, so that a slow moment of the machine affects both.
    let ratio = |figure: Figure| {
        median(ours.iter().zip(nginx).map(|(ours, nginx)| figure(ours) / figure(nginx)))
    };
    println!(
        "  {title:<34}{connections:>6}  {:>10.0}{:>10.0}{:>7.2}  {:>8.2}{:>8.2}  {:>8.2}{:>8.2}{:>7.2}",
        median_of(ours, figure),
        median_of(nginx, figure),
        ratio(figure),
        median_of(ours, |run| run.p50),
        median_of(nginx, |run| run.p50),
        median_of(ours, |run| run.p99),
        median_of(nginx, |run| run.p99),
        ratio(|run| run.p99),
    );
}
