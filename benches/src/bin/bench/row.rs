//! One row of the tables.

use std::time::Duration;

/// What a closed loop of clients saw.
pub struct Row {
    /// Clients at once.
    pub clients: usize,
    /// The times of what succeeded, sorted.
    pub times: Vec<Duration>,
    /// How many were refused.
    pub refused: usize,
    /// How long it took.
    pub elapsed: Duration,
}

impl Row {
    /// Puts together what each client saw.
    pub fn new(each: Vec<(Vec<Duration>, usize)>, elapsed: Duration) -> Self {
        let clients = each.len();
        let refused = each.iter().map(|(_, refused)| refused).sum();
        let mut times: Vec<_> = each.into_iter().flat_map(|(times, _)| times).collect();
        times.sort_unstable();
        Self { clients, times, refused, elapsed }
    }

    /// Successes per second.
    pub fn rate(&self) -> f64 {
        // Counts of a run of seconds: far below 2^52.
        #[allow(clippy::cast_precision_loss)]
        let count = self.times.len() as f64;
        count / self.elapsed.as_secs_f64()
    }

    /// Refusals per second.
    pub fn refusals(&self) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let count = self.refused as f64;
        count / self.elapsed.as_secs_f64()
    }

    /// The time within which `percent` of the successes ended.
    pub fn percentile(&self, percent: usize) -> Duration {
        let last = self.times.len().saturating_sub(1);
        self.times.get(last * percent / 100).copied().unwrap_or_default()
    }

    /// Prints the row; `ceiling` is the rate to compare with, 0 for none.
    pub fn print(&self, ceiling: f64) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let ratio = if ceiling > 0.0 { self.rate() / ceiling } else { 1.0 };
        println!(
            "  {:>7} {:>10.0} {:>9.1} {:>9.1} {:>9} {:>11.2}",
            self.clients,
            self.rate(),
            ms(self.percentile(50)),
            ms(self.percentile(99)),
            self.refused,
            ratio
        );
    }
}
