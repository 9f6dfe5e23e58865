//! `safelight queues`: how many jobs wait, and how fast they are done.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::server_args::ServerArgs;
use crate::{
    error::CommandError,
    output::{print_list, text},
};

/// Options of `safelight queues`.
#[derive(Args)]
pub struct QueuesArgs {
    /// Print one JSON object per queue
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

const HEADER: [&str; 10] =
    ["KIND", "LANE", "DEPTH", "DUE", "RUNNING", "FAILED", "OLDEST", "IN/S", "OUT/S", "EMPTY IN"];

/// Lists the queues.
pub async fn run(args: QueuesArgs) -> Result<(), CommandError> {
    let answer = args.server.client().await?.queues().await?;
    print_list(&answer["queues"], args.json, HEADER, row);
    Ok(())
}

fn row(queue: &Value) -> [String; 10] {
    [
        text(&queue["kind"]),
        text(&queue["lane"]),
        text(&queue["depth"]),
        text(&queue["due"]),
        text(&queue["running"]),
        text(&queue["failed"]),
        seconds(&queue["oldest_due_seconds"]),
        rate(&queue["rate_in"]),
        rate(&queue["rate_out"]),
        seconds(&queue["seconds_to_empty"]),
    ]
}

/// Such as `12.5`; a dash if it is not known.
fn rate(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
}

/// Such as `2h 5m 3s`; a dash if it is not known, or more than a duration can be.
fn seconds(value: &Value) -> String {
    let known =
        value.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds.round()).ok());
    known.map_or_else(|| "-".to_owned(), |age| humantime::format_duration(age).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ages_are_printed_in_hours_minutes_and_seconds() {
        let printed =
            [json!(0.0), json!(7503.4), json!(null), json!(1e300)].map(|age| seconds(&age));
        assert_eq!(printed, ["0s", "2h 5m 3s", "-", "-"]);
    }
}
