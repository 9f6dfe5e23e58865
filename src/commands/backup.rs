//! `safelight backup`: copy the database and the stored bytes to another place, while the server runs.

use std::fmt::Write as _;

use clap::Args;
use safelight_config::Config;

use super::restore::progress_bar;
use crate::{
    backup::{self, BackupOptions, BackupReport, Location},
    bootstrap::runtime,
    error::CommandError,
    output::{output, status},
};

/// Options of `safelight backup`.
#[allow(clippy::struct_excessive_bools)] // independent options
#[derive(Args)]
pub struct BackupArgs {
    #[arg(
        value_name = "DEST",
        help = "Where to: a directory, file:///FOLDER or s3://BUCKET/PREFIX"
    )]
    destination: Location,
    /// Start a backup in a new place; otherwise there must be one already
    #[arg(long)]
    init: bool,
    /// How many snapshots of the database to keep
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    keep: u16,
    /// Leave out renditions, which can be made again
    #[arg(long)]
    without_renditions: bool,
    /// Also read every original in the backup, and compare it with its hash
    #[arg(long)]
    verify: bool,
    /// Remove originals that neither a kept snapshot nor the blob store has
    #[arg(long)]
    prune: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Makes a backup; fails if an image lacks its bytes, or if bytes are damaged.
pub async fn run(config: Config, args: BackupArgs) -> Result<(), CommandError> {
    runtime::init(&config, "backup")?;
    let options = BackupOptions {
        init: args.init,
        keep: args.keep.into(),
        renditions: !args.without_renditions,
        verify: args.verify,
        prune: args.prune,
    };
    let progress = progress_bar();
    let result = backup::create(&config, &args.destination, &options, &progress).await;
    progress.finish_and_clear();
    let report = result?;
    for (what, findings) in [
        ("damaged", &report.damaged),
        ("damaged in the backup", &report.damaged_in_backup),
        ("unreadable", &report.unreadable),
        ("missing", &report.missing),
        ("note: an upload failed, and its bytes are gone: image", &report.lost_uploads),
    ] {
        findings.named.iter().for_each(|name| status!("{what}: {name}"));
    }
    if args.json {
        output!("{}", serde_json::to_string(&report).map_err(CommandError::failed)?);
    } else {
        output!("{}", summary(&report));
    }
    if report.is_complete() {
        return Ok(());
    }
    Err(CommandError::failed(format!(
        "the backup is not complete: {} damaged, {} damaged in the backup, {} unreadable, {} missing",
        report.damaged.count,
        report.damaged_in_backup.count,
        report.unreadable.count,
        report.missing.count
    ))
    .hint("everything else was copied; `safelight backfill verify` examines the store"))
}

/// What was done, in a line.
fn summary(report: &BackupReport) -> String {
    let BackupReport { snapshot, images, copied, copied_bytes, present, seconds, .. } = report;
    let mut text = format!(
        "snapshot {snapshot} of {images} images: {copied} objects copied ({copied_bytes} bytes), \
         {present} there before"
    );
    let removed_snapshots = u64::try_from(report.removed_snapshots).unwrap_or(u64::MAX);
    for (count, what) in [
        (report.verified, "verified"),
        (report.repaired, "repaired"),
        (removed_snapshots, "old snapshots removed"),
        (report.pruned, "objects removed"),
    ] {
        if count > 0 {
            let _ = write!(text, ", {count} {what}");
        }
    }
    text + &format!(", {seconds:.1} s")
}
