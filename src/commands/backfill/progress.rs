use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use safelight_client::Client;
use serde_json::Value;

use crate::{error::CommandError, output::status};

/// Time between two requests to the server.
const POLL: Duration = Duration::from_millis(500);

/// Time between two status messages if standard error is no terminal.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// Shows the progress of a backfill until it has ended, also through outages of the server.
pub async fn watch(client: &Client, id: &str) -> Result<Value, CommandError> {
    let bar = progress_bar();
    let started = Instant::now();
    let (mut last_message, mut first, mut unavailable) = (Instant::now(), None, false);
    loop {
        let task = match client.task(id).await {
            Ok(task) => task,
            Err(error) if error.is_retryable() => {
                if !unavailable {
                    bar.suspend(|| status!("{error}; asking again until the server answers"));
                }
                unavailable = true;
                tokio::time::sleep(POLL).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        unavailable = false;
        if task["backfill"].is_null() {
            return Err(CommandError::usage(format!("{id} is no backfill")));
        }
        let done = Done::of(&task);
        let since = *first.get_or_insert(done.all());
        let text = done.text(&task, since, started.elapsed());
        bar.set_length(done.total.unwrap_or(done.all()));
        bar.set_position(done.all());
        bar.set_message(text.clone());
        if bar.is_hidden() && last_message.elapsed() >= STATUS_INTERVAL {
            match done.total {
                Some(total) => status!("{} of {total}, {text}", done.all()),
                None => status!("counting what there is to look at"),
            }
            last_message = Instant::now();
        }
        if !task["finished_at"].is_null() {
            bar.finish_and_clear();
            return Ok(task);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Images whose work has ended, or that need none.
struct Done {
    total: Option<u64>,
    succeeded: u64,
    failed: u64,
    skipped: u64,
    cancelled: u64,
}

impl Done {
    fn of(task: &Value) -> Self {
        let images = &task["backfill"]["images"];
        let count = |name: &str| images[name].as_u64().unwrap_or(0);
        // A dry run processes nothing: its progress is what it has planned.
        let planned = if task["backfill"]["dry_run"] == true { count("planned") } else { 0 };
        Self {
            total: images["total"].as_u64(),
            succeeded: count("succeeded") + planned,
            failed: count("failed"),
            skipped: count("skipped"),
            cancelled: count("cancelled"),
        }
    }

    fn all(&self) -> u64 {
        self.succeeded + self.failed + self.skipped + self.cancelled
    }

    /// Counts, rate and time left, in a line.
    fn text(&self, task: &Value, since: u64, elapsed: Duration) -> String {
        let text =
            format!("{} done, {} failed, {} skipped", self.succeeded, self.failed, self.skipped);
        if task["backfill"]["paused"] == true {
            return text + ", paused";
        }
        #[allow(clippy::cast_precision_loss)] // for people
        let rate = (self.all() - since.min(self.all())) as f64 / elapsed.as_secs_f64().max(0.001);
        let left = self.total.map(|total| total.saturating_sub(self.all()));
        match left {
            Some(left) if rate >= 0.01 => {
                #[allow(clippy::cast_precision_loss)]
                let seconds = (left as f64 / rate).min(1e9);
                let time = humantime::format_duration(Duration::from_secs_f64(seconds.round()));
                text + &format!(", {rate:.1}/s, {time} left")
            }
            _ => text,
        }
    }
}
