//! `safelight restore`: restore a snapshot that `safelight backup` made.

use std::{io::IsTerminal, time::Duration};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use safelight_config::Config;

use crate::{
    backup::{self, Location, RestoreOptions},
    bootstrap::runtime,
    error::CommandError,
    output::{output, status},
};

/// How often the progress is drawn.
const TICK: Duration = Duration::from_millis(200);

/// Options of `safelight restore`.
#[derive(Args)]
pub struct RestoreArgs {
    #[arg(
        value_name = "SOURCE",
        help = "Where from: a directory, file:///FOLDER or s3://BUCKET/PREFIX"
    )]
    source: Location,
    /// A snapshot by name, or the newest one that is not later than this time or day, such as
    /// 2026-11-30T12:00:00Z [default: the newest]
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Replace a SQLite database that has images; it is kept under another name
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Restores a snapshot; fails if an image lacks its bytes.
pub async fn run(config: Config, args: RestoreArgs) -> Result<(), CommandError> {
    runtime::init(&config, "restore")?;
    let options = RestoreOptions { at: args.at, force: args.force };
    let progress = progress_bar();
    let result = backup::restore(&config, &args.source, &options, &progress).await;
    progress.finish_and_clear();
    let report = result?;
    report.damaged.named.iter().for_each(|name| status!("damaged in the backup: {name}"));
    let damaged = &report.damaged_in_store;
    damaged.named.iter().for_each(|name| status!("damaged in the blob store: {name}"));
    report.missing.named.iter().for_each(|name| status!("missing: {name}"));
    for image in &report.lost_uploads.named {
        status!("note: an upload failed, and its bytes are gone: image {image}");
    }
    if let Some(replaced) = &report.replaced {
        status!("the database that was there before is {replaced}");
    }
    if args.json {
        output!("{}", serde_json::to_string(&report).map_err(CommandError::failed)?);
    } else {
        output!(
            "restored snapshot {} of {} images: {} objects copied ({} bytes), {} there before, {:.1} s",
            report.snapshot,
            report.images,
            report.copied,
            report.copied_bytes,
            report.present,
            report.seconds
        );
    }
    if report.is_complete() {
        return Ok(());
    }
    let lacking = report.missing.count + damaged.count;
    Err(CommandError::failed(format!("{lacking} originals are missing or damaged in the backup"))
        .hint("everything else is restored; uploading the same pictures again repairs them"))
}

/// A line on standard error that says what is done, if that is a terminal.
pub(super) fn progress_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg}  {pos} objects  {elapsed}");
    let bar = ProgressBar::new_spinner()
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(TICK);
    bar
}
