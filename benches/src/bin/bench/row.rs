//! A row of the tables.

use std::time::Duration;

/// The uploads of one client.
#[derive(Default)]
pub struct Uploads {
    /// The times of those that were accepted.
    pub times: Vec<Duration>,
    /// The number of those that were rejected.
    pub rejected: usize,
    /// The number of those without a whole response.
    pub broken: usize,
}

/// The results of clients in a closed loop.
pub struct Row {
    /// The number of concurrent clients.
    pub clients: usize,
    /// The sorted times of successful uploads.
    pub times: Vec<Duration>,
    /// The number of rejected uploads.
    pub rejected: usize,
    /// The number of uploads whose clients read no whole response.
    pub broken: usize,
    /// The duration of the measurement.
    pub elapsed: Duration,
}

impl Row {
    /// Combines the results of all clients.
    pub fn new(results: Vec<Uploads>, elapsed: Duration) -> Self {
        let clients = results.len();
        let rejected = results.iter().map(|client| client.rejected).sum();
        let broken = results.iter().map(|client| client.broken).sum();
        let mut times: Vec<_> = results.into_iter().flat_map(|client| client.times).collect();
        times.sort_unstable();
        Self { clients, times, rejected, broken, elapsed }
    }

    /// Successes per second.
    pub fn rate(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)] // exact up to 2^53 uploads
        let count = self.times.len() as f64;
        count / self.elapsed.as_secs_f64()
    }

    /// Rejections per second.
    pub fn rejections_per_second(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let count = self.rejected as f64;
        count / self.elapsed.as_secs_f64()
    }

    /// The given percentile of the times.
    pub fn percentile(&self, percent: usize) -> Duration {
        let last = self.times.len().saturating_sub(1);
        self.times.get(last * percent / 100).copied().unwrap_or_default()
    }

    /// Prints the row. `ceiling` is the rate to compare with, or 0 if there is none.
    pub fn print(&self, ceiling: f64) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let ratio = if ceiling > 0.0 { self.rate() / ceiling } else { 1.0 };
        println!(
            "  {:>7} {:>10.0} {:>9.1} {:>9.1} {:>9} {:>11.2}",
            self.clients,
            self.rate(),
            ms(self.percentile(50)),
            ms(self.percentile(99)),
            self.rejected,
            ratio
        );
    }
}
