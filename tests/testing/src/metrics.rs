//! The metrics of a running server, as Prometheus reads them.

use anyhow::Result;

use crate::client::Client;

/// The counter of reads from the blob store.
pub const BLOB_READS: &str = "safelight_blob_reads_total";

/// The counter of cache requests by `tier` and `result`.
pub const CACHE_REQUESTS: &str = "safelight_cache_requests_total";

/// A response of `/metrics`.
pub struct Metrics(String);

impl Metrics {
    /// Reads the metrics of a server.
    pub async fn of(client: &Client) -> Result<Self> {
        Ok(Self(client.get("/metrics").await?.error_for_status()?.text().await?))
    }

    /// The text of the response.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The sum of all series of `name` with these labels; 0 if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let series = self.0.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            let wanted = |(key, value): &(&str, &str)| {
                let label = format!("{key}=\"{value}\"");
                rest.trim_end_matches('}').split(',').any(|found| found == label)
            };
            let matches = found == name && labels.iter().all(wanted);
            matches.then(|| value.parse::<f64>().ok()).flatten()
        });
        // The sum of no floating-point numbers is −0.
        0.0 + series.sum::<f64>()
    }

    /// The number of reads from the blob store.
    pub fn blob_reads(&self) -> f64 {
        self.sum(BLOB_READS, &[])
    }

    /// The number of hits of a cache tier.
    pub fn hits(&self, tier: &str) -> f64 {
        self.sum(CACHE_REQUESTS, &[("tier", tier), ("result", "hit")])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_selects_series_by_name_and_labels() {
        let text = "# TYPE safelight_cache_requests_total counter\n\
                    safelight_cache_requests_total{tier=\"memory\",result=\"hit\"} 3\n\
                    safelight_cache_requests_total{tier=\"disk\",result=\"hit\"} 4\n\
                    safelight_cache_requests_total{tier=\"disk\",result=\"miss\"} 8\n\
                    safelight_blob_reads_total{source=\"store\"} 2\n\
                    other_total 9\n";
        let metrics = Metrics(text.to_owned());
        let sums = [metrics.hits("memory"), metrics.hits("disk"), metrics.hits("shared")];
        assert_eq!(sums.map(f64::to_bits), [3.0, 4.0, 0.0].map(f64::to_bits));
        assert_eq!(metrics.blob_reads().to_bits(), 2.0_f64.to_bits());
        assert_eq!(metrics.sum("other_total", &[]).to_bits(), 9.0_f64.to_bits());
    }
}
