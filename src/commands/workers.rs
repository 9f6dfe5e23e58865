//! `safelight workers`: the workers of the fleet.

use clap::Args;
use serde_json::Value;

use super::server_args::ServerArgs;
use crate::{
    error::CommandError,
    output::{print_list, text},
};

/// Options of `safelight workers`.
#[derive(Args)]
pub struct WorkersArgs {
    /// Print one JSON object per worker
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

const HEADER: [&str; 11] = [
    "ID",
    "HOST",
    "PID",
    "VERSION",
    "STATUS",
    "LAST HEARTBEAT",
    "KINDS",
    "LANES",
    "SLOTS",
    "BUSY",
    "ENDED",
];

/// Lists the workers.
pub async fn run(args: WorkersArgs) -> Result<(), CommandError> {
    let answer = args.server.client().await?.workers().await?;
    print_list(&answer["workers"], args.json, HEADER, row);
    Ok(())
}

fn row(worker: &Value) -> [String; 11] {
    [
        text(&worker["id"]),
        text(&worker["host"]),
        text(&worker["pid"]),
        text(&worker["version"]),
        text(&worker["status"]),
        text(&worker["last_heartbeat_at"]),
        names(&worker["kinds"]),
        names(&worker["lanes"]),
        text(&worker["concurrency"]),
        sum(&worker["slots"], "busy"),
        sum(&worker["slots"], "ended"),
    ]
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn names(list: &Value) -> String {
    items(list).iter().map(text).collect::<Vec<_>>().join(",")
}

/// Over all queues of a worker.
fn sum(slots: &Value, key: &str) -> String {
    items(slots).iter().filter_map(|one| one[key].as_u64()).sum::<u64>().to_string()
}
